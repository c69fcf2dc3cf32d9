"""thinet is its equations: against loops over the contributions themselves."""

import itertools

import numpy as np
import pytest
import torch
from ga_nets import EXACT, images, lively, look, reading, resnet8
from hydra.utils import instantiate
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.methods.output_error import OutputError, places, removal_order
from reprune.methods.thinet import Rescale, ThiNet, scales
from reprune.pipeline import prune
from reprune.pruning.rounds import Round
from reprune.structure.groups import FilterGroup, Slice


def literal_order(x: np.ndarray, n: int) -> list[int]:
    """Eq. 1. x [N, C]"""
    gone: list[int] = []
    for _ in range(n):
        norms = {c: float((sum(x[:, j] for j in [*gone, c]) ** 2).sum()) for c in range(x.shape[1]) if c not in gone}
        gone.append(min(norms, key=norms.get))
    return gone


@pytest.mark.parametrize("seed", range(5))
def test_greedy_discarding_and_rescaling_are_the_equations(seed):
    random = np.random.default_rng(seed)
    common = random.normal(size=(40, 1)) * random.choice([-2, 2], 9)
    x = random.normal(size=(40, 9)) * random.uniform(0.2, 2, 9) + common
    gram = torch.from_numpy(x.T @ x)
    order = literal_order(x, 9)
    assert removal_order(gram, 9).tolist() == order
    assert order != np.argsort((x ** 2).sum(0)).tolist()          # and not the channels' own norms
    keep = torch.ones(9, dtype=torch.bool)
    keep[order[:4]] = False
    expected = np.linalg.lstsq(x[:, keep.numpy()], x.sum(1), rcond=None)[0]
    assert np.allclose(scales(gram, keep), expected, rtol=1e-8)


def test_a_pair_is_one_filter_of_the_next_layer_at_one_position():
    """One image, one pair: one of the 9 positions times 4 filters, and each of them some time."""
    x = images(1)
    net = lively(reading(nn.Conv2d(6, 4, 3, stride=3)), images())
    probe, conv = look(net, x), net[3]
    with torch.no_grad():
        h = net[:3](x)[0]
        added = [(h[:, i:i + 3, j:j + 3] * conv.weight[o]).sum((1, 2)) for o, i, j in
                 itertools.product(range(4), (0, 3, 6), (0, 3, 6))]
    hits = set()
    for seed in range(150):
        probe = look(net, x, seed=seed, original=probe.original)
        form = ThiNet(n_samples=1, points=1).forms(probe.groups[:1], probe)["0"]["3"]
        away = torch.stack([(form - torch.outer(a, a)).abs().max() for a in added])
        assert away.min() <= EXACT * form.abs().max()
        hits.add(int(away.argmin()))
    assert len(hits) > 30                                         # of 36


def test_what_a_kept_twin_can_make_up_for_changes_nothing():
    """Filter 1 is filter 0 again, and 0.5 of it is read: without it, filter 0 is read 1.5 times."""
    x = images()
    net = lively(reading(nn.Conv2d(6, 4, 3)), x)
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var):
            tensor[1] = tensor[0]
        net[3].weight[:, 1] = 0.5 * net[3].weight[:, 0]
        probe = look(net, x)
        before, error = net(x), ThiNet(n_samples=8)
        plan = {"0": torch.tensor([True, False, True, True, True, True])}
        smaller = reprune.remove(net, plan)
        assert not torch.allclose(smaller(x), before)
        smaller = Rescale(error=error)(smaller, probe)
        assert torch.allclose(smaller(x), before, rtol=1e-6)
        assert torch.allclose(smaller[3].weight[:, 0], 1.5 * net[3].weight[:, 0], rtol=1e-6)
        assert torch.allclose(smaller[3].weight[:, 1:], net[3].weight[:, 2:], rtol=1e-6)


def test_a_trunk_is_rescaled_in_each_layer_that_reads_it_by_scales_of_its_own():
    probe, error = resnet8(dtype=torch.float64), ThiNet(n_samples=24, points=0)
    group = next(g for g in probe.groups if g.coupled)
    keep = error([group], probe)[group.name] >= 0.3
    plan = {group.name: keep, probe.groups[1].name: torch.arange(probe.groups[1].size) > 2}
    smaller = reprune.remove(probe.net, plan)
    weights = {s.module: smaller.get_submodule(s.module).weight.clone() for s in group.readers()}
    assert len(weights) > 1
    with torch.no_grad():
        repaired = Rescale(error=error)(smaller, probe)
    factors = []
    for s in group.readers():
        expected = scales(error.forms([group], probe)[group.name][s.module], keep).repeat_interleave(s.index.shape[1])
        ratio = repaired.get_submodule(s.module).weight / weights[s.module]
        own = places(s, keep, plan, probe.net).flatten()          # option-A shortcuts: other trunks begin with this one
        assert torch.allclose(ratio[:, own], expected.view(-1, *[1] * (ratio.dim() - 2)).expand_as(ratio[:, own]))
        assert (ratio.index_fill(1, own, 1) == 1).all()
        factors.append(expected[:3])
    assert not torch.allclose(factors[0], factors[1])


def test_the_method_discards_in_order_and_rescales(configure):
    method = instantiate(configure("method=thinet", "method.criterion.n_samples=24").method)
    probe = resnet8()
    smaller = prune(method, Round(counts={"layer1.0.conv1": 8}), probe)
    q = method.criterion.forms([g for g in probe.groups if g.name == "layer1.0.conv1"], probe)["layer1.0.conv1"]
    keep = torch.ones(16, dtype=torch.bool)
    keep[removal_order(q["layer1.0.conv2"], 16)[:8]] = False
    assert torch.equal(smaller.layer1[0].conv1.weight, probe.net.layer1[0].conv1.weight[keep])
    w = scales(q["layer1.0.conv2"], keep).float().view(-1, 1, 1)
    assert torch.allclose(smaller.layer1[0].conv2.weight, probe.net.layer1[0].conv2.weight[:, keep] * w)


def test_a_filter_that_no_next_layer_reads_is_refused():
    probe = resnet8()
    group = FilterGroup("conv1", 4, (Slice("conv1", "out", torch.arange(4)[:, None]),))
    with pytest.raises(UserError, match="^ThiNet measures filters in the layers that read them[^\n]*conv1[^\n]*$"):
        ThiNet().check([group], probe)
    with pytest.raises(UserError, match="^repair.error must be [^\n]*ThiNet, got OutputError$"):
        Rescale(error=OutputError())
