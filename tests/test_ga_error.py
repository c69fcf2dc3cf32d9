"""ga, first half: the quadratic form is the error of the layers, on the net that is asked for."""

from dataclasses import replace

import pytest
import torch
from ga_nets import EXACT, NETS, brute_force, images, inner, lively, look, masks, outputs, reading, resnet8
from nets import build
from torch import nn

import reprune
from reprune.methods.ga import OutputError, quadratic


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", NETS)
def test_the_quadratic_form_is_the_output_error_of_the_silenced_net(name):
    """All positions of all images, in batches of unequal size."""
    make, group, readers = NETS[name]
    x = images()
    net = lively(make(), x)
    probe = look(net, x)
    filters = next(g for g in probe.groups if g.name == group)
    q = OutputError(n_samples=len(x), points=0).matrices([filters], probe)[group]
    assert q.dtype == torch.float64 and q.shape == (filters.size, filters.size)
    for gone in masks(filters.size, 6):
        expected = brute_force(net, group, readers, x, gone)
        assert expected > 0
        assert quadratic(gone.to(q)[None], q).item() == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("name", ["cifar-resnet8", "mobilenet_v3_small", "squeezenet1_1"])
def test_channels_of_a_real_net_have_the_sum_of_the_errors_in_all_layers_that_read_them(name):
    """Trunks, squeeze-excite, concatenation: each layer run again on its own inputs with the channels zeroed."""
    net, x = build(name)
    probe = look(net, x)
    groups = [probe.groups[i] for i in {0, 1, 2, len(probe.groups) // 2, len(probe.groups) - 1}]
    found, inputs = OutputError(n_samples=4, points=0).matrices(groups, probe), {}
    for module in {s.module for g in groups for s in g.readers()}:
        net.get_submodule(module).register_forward_pre_hook(lambda m, args: inputs.update({m: args[0].clone()}))
    with torch.no_grad():
        net(x)
        for group in groups:
            gone, expected = torch.arange(group.size) % 3 == 1, 0
            for s in group.readers():
                layer = net.get_submodule(s.module)
                if getattr(layer, "groups", 1) > 1:               # depthwise: goes with the filters
                    continue
                h, dim = inputs[layer], 1 if isinstance(layer, nn.Conv2d) else -1
                change = layer(h) - layer(h.index_fill(dim, s.index[gone].flatten(), 0))
                expected += change.pow(2).sum(dim).mean().item()
            assert expected > 0
            q = found[group.name]
            assert quadratic(gone.to(q)[None], q).item() == pytest.approx(expected, rel=EXACT), group.name


def test_a_sampled_error_is_the_error_at_one_position():
    """One image, one point: one of the 3 x 3 errors that a pass over the whole map has, and each of them some time."""
    x = images(1)
    net = lively(reading(nn.Conv2d(6, 4, 3, stride=3)), images())
    gone = torch.tensor([True, False, True, True, False, False])
    reprune.trace(net, x)
    whole, silent = outputs(net, ["3"], x)[0], outputs(reprune.silence(net, {"0": ~gone}), ["3"], x)[0]
    at = (whole - silent).pow(2).sum(1)
    assert len(at) == 9
    hits, probe = set(), look(net, x)
    for seed in range(100):
        probe = look(net, x, seed=seed, original=probe.original)
        q = OutputError(n_samples=1, points=1).matrices(probe.groups[:1], probe)["0"]
        near = (at - quadratic(gone.to(q)[None], q)).abs()
        assert near.min() <= EXACT * at.max()
        hits.add(near.argmin().item())
    assert hits == set(range(9))


def test_sampled_forms_are_positive_semidefinite_and_their_mean_is_that_of_all_positions():
    x = images()
    net = lively(reading(nn.Conv2d(6, 4, 3, padding=1)), x)
    probe = look(net, x)
    full = OutputError(n_samples=8, points=0).matrices(probe.groups[:1], probe)["0"]
    drawn = []
    for seed in range(100):
        probe = look(net, x, seed=seed, original=probe.original)
        q = OutputError(n_samples=8, points=4).matrices(probe.groups[:1], probe)["0"]
        assert torch.allclose(q, q.T, rtol=1e-12) and (q.diagonal() >= 0).all()
        assert torch.linalg.eigvalsh(q).min() >= -EXACT * q.diagonal().max()
        drawn.append(q)
    drawn = torch.stack(drawn)
    away = (drawn.mean(0) - full).abs() / (drawn.std(0) / len(drawn) ** 0.5)
    assert away.max() < 4                                         # standard errors: no bias
    assert drawn.std(0).max() > 0.01 * full.max()                 # they did sample


def test_as_many_points_as_positions_are_all_positions():
    x = images()
    probe = look(lively(reading(nn.Conv2d(6, 4, 3)), x), x)
    q = [OutputError(n_samples=8, points=p).matrices(probe.groups[:1], probe)["0"] for p in (0, 49, 1000)]
    assert torch.equal(q[0], q[1]) and torch.equal(q[0], q[2])


def test_scores_are_the_errors_of_single_filters_and_other_settings_measure_anew():
    x = images()
    probe = look(lively(reading(nn.Conv2d(6, 4, 3)), x), x)
    few, many, sampled = OutputError(2, points=0), OutputError(8, points=0), OutputError(8, points=1)
    scores = few(probe.groups, probe)
    assert not torch.equal(many(probe.groups, probe)["0"], sampled(probe.groups, probe)["0"])
    for criterion, n in ((few, 2), (many, 8)):
        used = torch.cat([x for x, _ in probe.data.plain(3, probe.seed, n)])
        expected = [brute_force(probe.net, "0", ["3"], used, gone) for gone in torch.eye(6, dtype=torch.bool)]
        assert torch.allclose(criterion(probe.groups, probe)["0"], torch.tensor(expected), rtol=1e-5)
    assert scores["0"].dtype == torch.float32 and set(scores) == {g.name for g in probe.groups}


def test_layers_that_do_not_run_have_no_error():
    """The auxiliary heads of GoogLeNet exist in training mode only."""
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.aux, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 5, 1)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return (self.b(h), self.aux(h)) if self.training else self.b(h)

    x = images(4)
    net = Headed().double()
    probe = look(net, x)
    group = probe.groups[0]
    assert {s.module for s in group.readers()} == {"b", "aux"}
    q = OutputError(n_samples=4, points=0).matrices([group], probe)["a"]
    gone = torch.tensor([True, False, True, False])
    assert quadratic(gone.to(q)[None], q).item() == pytest.approx(brute_force(net, "a", ["b"], x, gone), rel=EXACT)


def test_measuring_leaves_the_net_and_the_global_random_state_alone():
    x = images()
    probe = look(lively(reading(nn.Conv2d(6, 4, 3)), x), x)
    probe.net.train()
    before, state = {k: v.clone() for k, v in probe.net.state_dict().items()}, torch.get_rng_state()
    OutputError(n_samples=8)(probe.groups, probe)
    assert torch.equal(torch.get_rng_state(), state) and probe.net.training
    assert all(torch.equal(v, before[k]) for k, v in probe.net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in probe.net.modules())


# refresh: which net is measured


@pytest.mark.parametrize("refresh", [True, False])
def test_without_refresh_only_the_net_before_the_first_round_is_measured(refresh):
    first = resnet8()
    criterion = OutputError(n_samples=24, points=0, refresh=refresh)
    before = criterion(inner(first), first)
    keep = torch.arange(16) >= 8
    later = look(reprune.remove(first.net, {"layer1.0.conv1": keep}), first.data.x, seed=3, original=first.original)
    now = criterion(inner(later)[1:], later)
    passes = []
    later.net.register_forward_pre_hook(lambda *_: passes.append(1))
    again = criterion(inner(later)[1:], later)
    assert not passes and all(torch.equal(again[n], now[n]) for n in now)       # asked twice, measured once
    fresh = look(later.net, first.data.x, seed=3)
    expected = before if not refresh else OutputError(n_samples=24, points=0)(inner(fresh), fresh)
    for name in now:
        assert torch.equal(now[name], expected[name])
    assert not torch.allclose(before["layer3.0.conv1"], OutputError(24, 0)(inner(fresh), fresh)["layer3.0.conv1"])


def test_a_net_cut_while_the_allocation_searches_is_measured_itself():
    """As greedy allocation does it: the same probe with another net. What was found out about the first stays there."""
    first, criterion = resnet8(), OutputError(n_samples=24, points=0)
    before = criterion(inner(first), first)
    now = replace(first, net=reprune.remove(first.net, {"layer1.0.conv1": torch.arange(16) >= 8}))
    fresh = look(now.net, first.data.x, seed=3)
    found, expected = criterion(inner(now), now), criterion(inner(fresh), fresh)
    assert all(torch.equal(found[n], expected[n]) for n in found)
    assert not torch.equal(before["layer3.0.conv1"], found["layer3.0.conv1"])
