"""divnet is its equations: against loops over neurons, sets and samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from ga_nets import images, lively, look, reading, resnet8
from hydra.utils import instantiate
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.methods.divnet import KDPP, Diversity, Fuse, chain, draw, elementary, fused, kernel
from reprune.pipeline import prune
from reprune.pruning.rounds import Round


def literal_kernel(v: np.ndarray, beta: float) -> np.ndarray:
    """Eq. 1. v [N, c]"""
    c = v.shape[1]
    distance = [[float(((v[:, i] - v[:, j]) ** 2).sum()) for j in range(c)] for i in range(c)]
    pairs = sorted(distance[i][j] for i in range(c) for j in range(i))
    middle = pairs[(len(pairs) - 1) // 2]
    return np.array([[math.exp(-beta * distance[i][j] / middle) + 1e-6 * (i == j) for j in range(c)] for i in range(c)])


def correlated(c: int = 5, n: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=generator).double() @ torch.randn(c, c, generator=generator).double()


def test_kernel_and_score_are_the_equations():
    v = correlated()
    matrix = kernel(v.T @ v, 0.7)
    assert np.allclose(matrix, literal_kernel(v.numpy(), 0.7))
    weight = {s: float(torch.det(matrix[list(s)][:, list(s)])) if s else 1.0        # every set of the DPP
              for n in range(6) for s in itertools.combinations(range(5), n)}
    marginals = [sum(w for s, w in weight.items() if i in s) / sum(weight.values()) for i in range(5)]
    assert Diversity.marginals(matrix).tolist() == pytest.approx(marginals, rel=1e-8)


def test_sets_are_drawn_by_their_determinants():
    matrix, generator, times = kernel((v := correlated(seed=1)).T @ v), torch.Generator().manual_seed(0), 1000
    sets = list(itertools.combinations(range(5), 2))
    share = torch.stack([torch.det(matrix[list(s)][:, list(s)]) for s in sets])
    share, seen = share / share.sum(), dict.fromkeys(sets, 0)
    for _ in range(times):
        seen[tuple(draw(matrix, 2, generator).sort().values.tolist())] += 1
    error = (torch.tensor(list(seen.values())) / times - share) / (share * (1 - share) / times).sqrt()
    assert error.abs().max() < 3.5                                # standard errors
    assert share.max() > 1.3 * share.min()                        # the draw could have been uniform


def test_the_likeliest_set_is_grown_by_log_det():
    matrix, chosen = kernel((v := correlated(9, seed=3)).T @ v), []
    while len(chosen) < 5:
        rest = [i for i in range(9) if i not in chosen]
        chosen.append(max(rest, key=lambda i: float(torch.logdet(matrix[[*chosen, i]][:, [*chosen, i]]))))
    assert chain(matrix, 5, lambda left: int(left.argmax())).tolist() == chosen


def test_dead_channels_and_wide_layers_do_not_break_the_sampler():
    """e_k of so many eigenvalues is no float64 any more."""
    values = torch.full((1200,), 1e-6, dtype=torch.float64)
    expected = math.lgamma(1201) - 2 * math.lgamma(601) + 600 * math.log(1e-6)
    assert float(elementary(values, 600)[-1, -1]) == pytest.approx(expected, rel=1e-9)
    gram = torch.zeros(80, 80).double()
    gram[:3, :3] = torch.eye(3)
    assert len(set(draw(kernel(gram), 60, torch.Generator()).tolist())) == 60


@pytest.mark.parametrize("rows", [40, 3])                         # fewer samples than neurons stay: the shortest
def test_fusing_is_the_least_squares_of_the_outgoing_weights(rows):
    v, w = correlated(6, rows), torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(2)).double()
    keep = torch.tensor([True, False, True, True, False, True])
    out = w.permute(1, 0, 2).flatten(1)                           # rows = neurons
    expected = out[keep] + torch.linalg.pinv(v[:, keep]) @ v[:, ~keep] @ out[~keep]
    found = fused(v.T @ v, keep, w)
    assert (found.permute(1, 0, 2).flatten(1) - expected).abs().max() < 1e-2 * expected.abs().max()
    if rows == 40:
        fitted = torch.linalg.lstsq(v[:, keep], v @ out).solution
        assert torch.allclose(fitted, expected)


@pytest.mark.parametrize("make", [lambda: reading(nn.Conv2d(6, 4, 3, padding=1)), lambda: nn.Sequential(
    nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 9, 4))])
def test_a_twin_is_fused_away_behind_the_nonlinearity(make):
    """Filter 1 is 3 x filter 0 where both are above zero, and is no multiple of it before the activation."""
    x = images()
    net = lively(make(), x)
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].running_mean, net[1].running_var):
            tensor[1] = tensor[0]
        net[1].weight[1], net[1].bias[1] = 3 * net[1].weight[0], 3 * net[1].bias[0]
    probe, error = look(net, x), Diversity(n_samples=8)
    group = next(g for g in probe.groups if g.name == "0")
    with torch.no_grad():
        before, smaller = net(x), reprune.remove(net, {"0": torch.tensor([True, False, True, True, True, True])})
        assert not torch.allclose(smaller(x), before, rtol=1e-3)
        assert torch.allclose(Fuse(error)(smaller, probe)(x), before, rtol=1e-3)
    assert error([group], probe)["0"].shape == (6,)


def test_seeds_draw_other_sets_and_the_likeliest_set_is_one(configure):
    found = {}
    for mode in ("sample", "map"):
        method = instantiate(configure("method=divnet", f"method.search.mode={mode}", "method.criterion.n_samples=24",
                                       "method.criterion.points=0").method)
        for seed in (1, 2):
            probe = resnet8()
            probe.seed = seed
            smaller = prune(method, Round(), probe)
            assert smaller.layer1[0].conv1.weight.shape[0] == 8
            found[mode, seed] = smaller.layer1[0].conv1.weight
    assert not torch.equal(found["sample", 1], found["sample", 2]) and torch.equal(found["map", 1], found["map", 2])
    with pytest.raises(UserError, match="^search.error must be a reprune.methods.divnet.Diversity, got NoneType$"):
        KDPP(None)
