"""Selection by loss increase: the fast scores are the brute-force ones, and the greedy search keeps its promises."""

import pytest
import torch
from hydra.utils import instantiate

from reprune import models
from reprune.methods.l1 import FilterNorm
from reprune.methods.loss_increase import Greedy, LossIncrease
from reprune.pruning.probe import Probe
from reprune.structure.surgery import remove


def probe_of(configure, **node) -> Probe:
    torch.manual_seed(0)
    net = models.build({"in_channels": 1, **(node or {"_target_": "reprune.models.resnet", "depth": 8})}).train()
    data = instantiate(configure("dataset.size=32").dataset)
    for module in net.modules():                                  # BN statistics that let the input through
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for x, _ in data.plain(60, 0):
            net(x)
    return Probe(net.eval(), torch.zeros(1, 1, 32, 32), data, seed=3, batch_size=60)


def brute_force(probe: Probe, group, n: int) -> torch.Tensor:
    """One full forward pass per filter, with the filter silenced by surgery."""
    without_each = ~torch.eye(group.size, dtype=torch.bool)
    return torch.tensor([probe.loss({group.name: keep}, n) for keep in without_each]) - probe.loss({}, n)


@pytest.mark.parametrize("images", [1, 90])
@pytest.mark.parametrize("node", [
    {"_target_": "reprune.models.resnet", "depth": 8},
    {"_target_": "reprune.models.torchvision", "arch": "mobilenet_v3_small", "classes": 10},
    {"_target_": "reprune.models.torchvision", "arch": "squeezenet1_1", "classes": 10}])
def test_scores_equal_full_forward_passes(images, node, configure):
    """Trunk, inner, squeeze-excite and concatenated groups alike, whatever the memory knob."""
    probe = probe_of(configure, **node)
    groups = [probe.groups[i] for i in (0, 1, len(probe.groups) // 2, -1)]
    groups = [g for g in {g.name: g for g in groups}.values() if g.size <= 100]
    fast = LossIncrease(n_samples=60, batch_size=30, images=images)(groups, probe)
    for group in groups:
        slow = brute_force(probe, group, 60)
        assert torch.allclose(fast[group.name].float(), slow, atol=1e-5), group.name
        assert slow.abs().max() > 1e-4, group.name                # the net listens to its filters


def test_greedy_meets_the_budget_and_never_more_than_needed(configure):
    probe = probe_of(configure)
    criterion = LossIncrease(n_samples=30, batch_size=30)
    search = Greedy(criterion=criterion, macs=0.8, groups="inner", step_fraction=0.2)
    plan = search(criterion(search.candidates(probe), probe), probe)
    assert probe.cost(plan).macs <= 0.8 * probe.original.cost.macs
    assert probe.cost(plan).macs > 0.75 * probe.original.cost.macs
    remove(probe.net, plan)


def test_greedy_one_by_one_is_the_literal_greedy(configure):
    """Against a search written out with brute-force losses."""
    probe = probe_of(configure)
    criterion = LossIncrease(n_samples=20, batch_size=20)
    search = Greedy(criterion=criterion, macs=0.97, groups="inner", step_fraction=0, skip=["layer2", "layer3"])
    plan = search(criterion(search.candidates(probe), probe), probe)
    group, keep = probe.groups[[g.name for g in probe.groups].index("layer1.0.conv1")], torch.ones(16, dtype=torch.bool)
    while probe.cost({group.name: keep}).macs > 0.97 * probe.original.cost.macs:
        losses = {}
        for i in keep.nonzero().flatten().tolist():
            trial = keep.clone()
            trial[i] = False
            losses[i] = probe.loss({group.name: trial}, 20)
        keep[min(losses, key=losses.get)] = False
    assert torch.equal(plan[group.name], keep) and not keep.all()


def test_greedy_stops_when_the_loss_has_grown_too_much(configure):
    probe = probe_of(configure)
    criterion = LossIncrease(n_samples=30, batch_size=30)
    search = Greedy(criterion=criterion, macs=0.5, groups="inner", step_fraction=0.1, max_loss_increase=-10.0)
    plan = search(criterion(search.candidates(probe), probe), probe)
    assert probe.cost(plan).macs > 0.5 * probe.original.cost.macs


@pytest.mark.parametrize("fraction", [0, 0.1])
def test_greedy_in_blocks_ends_at_the_budget_with_multiples(configure, fraction):
    """A tenth of the filters at a time is less than a block, or does not end with one."""
    probe = probe_of(configure)
    search = Greedy(criterion=FilterNorm(), macs=0.5, step_fraction=fraction, multiple=8)
    plan = search(search.criterion(search.candidates(probe), probe), probe)
    assert 0.4 * probe.original.cost.macs < probe.cost(plan).macs <= 0.5 * probe.original.cost.macs
    assert all(keep.all() or keep.sum() > 0 and keep.sum() % 8 == 0 for keep in plan.values())
