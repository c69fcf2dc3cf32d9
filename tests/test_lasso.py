"""lasso is its equations: against scikit-learn and numpy on the rows themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ga_nets import images, lively, look, reading, resnet8
from hydra.utils import instantiate
from sklearn.linear_model import Lasso
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.methods.lasso import Channels, Refit, Select, entries, normal, select
from reprune.pipeline import prune
from reprune.pruning.rounds import Round
from reprune.structure.groups import FilterGroup, Slice

ALL = {"n_samples": 8, "points": 10**6}


def rows(seed: int, c=10, k=4, n=6, r=30):
    random = np.random.default_rng(seed)
    x = random.normal(size=(r, c, k)) * random.uniform(0.3, 2, (c, 1)) + random.normal(size=(r, 1, k))
    w = random.normal(size=(n, c, k))
    z = np.stack([[w[o, i] @ x[a, i] for i in range(c)] for a in range(r) for o in range(n)])     # [r n, c]
    y = z @ random.uniform(0, 1.5, c) + random.normal(size=len(z)) + 0.7
    a, b = normal(torch.from_numpy(x.reshape(r, -1)), torch.from_numpy(y.reshape(r, n)), torch.from_numpy(w))
    return z, y, a, b


def literal(z, y, rank: int, tolerance: float) -> np.ndarray:
    """On all rows: alpha doubled, then bisected."""
    def beta(alpha):
        return Lasso(alpha=alpha, tol=1e-10, max_iter=100_000).fit(z, y).coef_

    right = 1e-3
    while (beta(right) != 0).sum() >= rank:
        right *= 2
    left = 0.0
    while True:
        found = beta((left + right) / 2) != 0
        if rank <= found.sum() <= rank + tolerance * rank:
            return found
        left, right = ((left + right) / 2, right) if found.sum() > rank else (left, (left + right) / 2)


@pytest.mark.parametrize(("seed", "rank", "tolerance"), [(0, 5, 0.0), (1, 5, 0.3), (2, 8, 0.1), (3, 2, 0.0)])
def test_moments_choose_the_channels_that_the_rows_choose(seed, rank, tolerance):
    z, y, a, b = rows(seed)
    keep = select(a, b, rank, tolerance, seed=0)
    assert np.array_equal(keep.numpy(), literal(z, y, rank, tolerance))
    assert rank <= keep.sum() <= rank * (1 + tolerance)


def test_a_score_is_the_alpha_at_which_a_channel_enters():
    z, y, a, b = rows(4)
    for channel, alpha in enumerate(entries(a, b).tolist()):
        sides = [Lasso(alpha=alpha * by, tol=1e-12, max_iter=100_000).fit(z, y).coef_[channel] for by in (0.99, 1.01)]
        assert sides[0] != 0 and sides[1] == 0


def test_more_may_stay_than_asked_for_but_never_all_and_a_rank_that_cannot_be_is_filled_up():
    _, _, a, b = rows(5)
    assert select(a, b, 9, 0.5, seed=0).sum() == 9                # 10 of 10 would be within the tolerance
    a[[2, 3]], a[:, [2, 3]], b[[2, 3]] = 0, 0, 0                  # two channels are dead
    kept = select(a, b, 9, 0.0, seed=0)
    assert kept.sum() == 9 and not kept[3]
    assert select(torch.zeros(4, 4), torch.zeros(4), 2, 0.1, seed=0).sum() == 2
    assert (entries(a, b)[[2, 3]] == 0).all()


class Three(nn.Module):
    """Its third layer has no bias and batch norm behind it, or a bias."""

    def __init__(self, norm: bool):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)
        self.c, self.norm = nn.Conv2d(5, 4, 2, bias=not norm), nn.BatchNorm2d(4) if norm else nn.Identity()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.inside(x).relu().mean((2, 3)))

    def before(self, x):
        return torch.relu(self.b(torch.relu(self.a(x))))

    def inside(self, x):
        return self.norm(self.c(self.before(x)))


@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_a_layer_is_refitted_from_the_inputs_of_now_to_the_outputs_of_the_original(norm):
    x = images()
    first = look(lively(Three(norm), x), x)
    now = look(reprune.remove(first.net, {"a": torch.arange(6) != 2}), x, original=first.original)
    keep = torch.tensor([True, False, True, True, False])
    smaller = Refit(Channels(**ALL))(reprune.remove(now.net, {"b": keep}), now)

    def flat(maps):
        return maps.movedim(1, -1).flatten(0, -2).numpy()

    inputs = now.net.before(x)[:, keep]                           # of the net that has lost a filter of a
    patches = flat(nn.functional.unfold(inputs, 2))
    target = flat(first.net.c(first.net.before(x)))
    design = np.concatenate([patches, np.ones((len(patches), 1))], 1)
    expected = np.linalg.lstsq(design, target, rcond=None)[0]     # [p + 1, 4]
    assert np.allclose(smaller.c.weight.flatten(1).numpy(), expected[:-1].T, rtol=1e-6, atol=1e-8)
    wanted = first.net.inside(x)
    error = (smaller.inside(x) - wanted)
    scale = (smaller.norm.running_var + smaller.norm.eps).sqrt() / smaller.norm.weight if norm else 1
    assert error.mean((0, 2, 3)).mul(scale).abs().max() < 1e-9    # the intercept is not lost, bias or not
    literal_error = (torch.from_numpy(design @ expected - target)).pow(2).sum()
    assert error.mul(scale.view(-1, 1, 1) if norm else 1).pow(2).sum() == pytest.approx(float(literal_error), rel=1e-6)
    own = Refit(Channels(**ALL, original=False))(reprune.remove(now.net, {"b": keep}), now)
    assert not torch.allclose(own.c.weight, smaller.c.weight)


@torch.no_grad()
def test_outputs_that_went_before_and_go_now_are_left_out_of_the_refit():
    """c has lost filter 0, b and c lose filters at once: rows of the weights stay in order."""
    x = images()
    first = look(lively(Three(True), x), x)
    some = look(reprune.remove(first.net, {"c": torch.tensor([False, True, True, True])}), x, original=first.original)
    plan = {"b": torch.tensor([True, False, True, True, False]), "c": torch.tensor([True, False, True])}
    refit = Refit(Channels(**ALL))
    cut, whole = (refit(reprune.remove(net.net, {n: plan[n] for n in names}), net) for net, names in
                  ((some, ("b", "c")), (first, ("b",))))
    assert torch.allclose(cut.c.weight, whole.c.weight[[1, 3]], rtol=1e-6)
    assert torch.allclose(cut.norm.running_mean, whole.norm.running_mean[[1, 3]], rtol=1e-6)


@torch.no_grad()
def test_sampled_rows_are_rows_of_both_nets_at_the_same_place():
    x = images()
    net = lively(reading(nn.Conv2d(6, 4, 3)), x)
    first = look(net, x)
    now = look(reprune.silence(net, {"0": torch.arange(6) > 0}), x, original=first.original)
    layer = now.net[3]
    for channels in (Channels(8, points=3), Channels(8, points=3, original=False)):
        measured = channels.measure(now.groups[:1], now)["0"][0]
        few, said = measured.some()
        assert measured.rows == 24 and len(few) == 1
        rebuilt = few @ layer.weight.flatten(1).T
        assert torch.allclose(said, rebuilt) is (not channels.original)
        maps = [(first.net if channels.original else now.net)[:4](x) - layer.bias.view(-1, 1, 1)]
        assert (maps[0].movedim(1, -1).flatten(0, 2) - said).abs().sum(1).min() < 1e-9


def test_the_method_keeps_what_its_budget_says_and_up_to_a_tenth_more(configure):
    probe = resnet8(n=60)
    for tolerance, most in ((0, 10), (0.1, 11)):
        method = instantiate(configure("method=lasso", f"method.search.rank_tol={tolerance}").method)
        smaller = prune(method, Round(counts={"layer1.0.conv1": 6}), replace(probe))
        assert 10 <= smaller.layer1[0].conv1.out_channels <= most
        assert not torch.equal(smaller.layer1[0].bn2.running_mean, probe.net.layer1[0].bn2.running_mean)


def test_what_it_cannot_measure_is_refused():
    probe = resnet8()
    group = FilterGroup("conv1", 4, (Slice("conv1", "out", torch.arange(4)[:, None]),))
    with pytest.raises(UserError, match="^Channels measures filters in the layers that read them[^\n]*conv1[^\n]*$"):
        Channels().check([group], probe)
    for socket in (Select, Refit):
        with pytest.raises(UserError, match="error must be [^\n]*Channels, got Criterion$"):
            socket(reprune.pruning.sockets.Criterion())
