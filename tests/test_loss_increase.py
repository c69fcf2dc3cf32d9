"""Selection by loss increase: the fast scores are the brute-force ones, and the greedy search keeps its promises."""

import copy
import math
from functools import partial

import pytest
import torch
from hydra.utils import instantiate

from reprune import models
from reprune.errors import UserError
from reprune.methods.l1 import FilterNorm
from reprune.methods.loss_increase import Greedy, LossIncrease, lifted
from reprune.methods.random import Random
from reprune.pruning import Budget, Recalibrate
from reprune.pruning.probe import Probe, evaluate
from reprune.structure.surgery import remove


class Named:
    """The images of a dataset, each under the name that a net has for it: the net says more than chance."""

    def __init__(self, data, net):
        self.data, self.net, self.parts, self.classes = data, copy.deepcopy(net), data.parts, data.classes

    @torch.no_grad()
    def plain(self, *args):
        for x, _ in self.data.plain(*args):
            yield x, self.net(x).argmax(1)


def probe_of(configure, size: int = 32, sharp: float = 1, **node) -> Probe:
    """Of an untrained net; the sharper, the less it takes to break it."""
    torch.manual_seed(0)
    net = models.build({"in_channels": 1, **(node or {"_target_": "reprune.models.resnet", "depth": 8})}).train()
    data = instantiate(configure(f"dataset.size={size}").dataset)
    for module in net.modules():                                  # BN statistics that let the input through
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for x, _ in data.plain(60, 0):
            net(x)
        if sharp != 1:
            net.linear.weight.mul_(sharp)
    return Probe(net.eval(), torch.zeros(1, 1, size, size), Named(data, net), seed=3, batch_size=60)


def brute_force(probe: Probe, group, n: int) -> torch.Tensor:
    """One full forward pass per filter, with the filter silenced by surgery."""
    without_each = ~torch.eye(group.size, dtype=torch.bool)
    return torch.tensor([probe.loss({group.name: keep}, n) for keep in without_each]) - probe.loss({}, n)


@pytest.mark.parametrize("node", [
    {"_target_": "reprune.models.resnet", "depth": 8},
    {"_target_": "reprune.models.torchvision", "arch": "mobilenet_v3_small", "classes": 10},
    {"_target_": "reprune.models.torchvision", "arch": "squeezenet1_1", "classes": 10}])
def test_scores_equal_full_forward_passes(node, configure):
    """Trunk, inner, squeeze-excite and concatenated groups alike, whatever the memory knob."""
    probe = probe_of(configure, **node)
    groups = [probe.groups[i] for i in (0, 1, len(probe.groups) // 2, -1)]
    groups = [g for g in {g.name: g for g in groups}.values() if g.size <= 100]
    ways = [LossIncrease(n_samples=60, batch_size=30, images=images)(groups, probe) for images in (1, 90)]
    for group in groups:
        slow = brute_force(probe, group, 60)
        assert all(torch.allclose(fast[group.name].float(), slow, atol=1e-5) for fast in ways), group.name
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


class Told(LossIncrease):
    """Remembers what it has scored, and on which net."""

    def __init__(self, **options):
        super().__init__(**options)
        self.said = []

    def scores(self, groups, probe):
        self.said.append((probe, super().scores(groups, probe)))
        return self.said[-1][1]


@pytest.mark.parametrize("recalibrate", [0, 30])
def test_a_net_that_breaks_is_scored_no_more_and_new_statistics_keep_it_alive(recalibrate, configure, capsys):
    probe = probe_of(configure, size=8, sharp=1000)
    criterion = Told(n_samples=30, batch_size=30)
    search = Greedy(criterion=criterion, macs=0.5, groups="inner", step_fraction=0.1, recalibrate=recalibrate)
    plan = search(criterion(search.candidates(probe), probe), probe)
    assert all(search.loss(now) < math.log(10) for now, _ in criterion.said)
    assert probe.cost(plan).macs <= 0.5 * probe.original.cost.macs
    lines = [line for line in capsys.readouterr().out.splitlines() if "less than chance" in line]
    assert len(lines) == (0 if recalibrate else 1)                # new statistics keep this net alive


def test_the_rest_of_a_net_that_breaks_goes_by_the_last_ranking_of_one_that_had_not(configure, capsys, monkeypatch):
    """Blocks of the first two rankings go one by one; the net is broken after the second."""
    probe, losses = probe_of(configure, size=8), iter([0.1, math.inf])
    monkeypatch.setattr(Greedy, "loss", lambda self, now: next(losses))
    criterion = Told(n_samples=30, batch_size=30)
    search = Greedy(criterion=criterion, macs=0.5, groups="inner", step_fraction=0.1)
    plan = search(criterion(search.candidates(probe), probe), probe)
    (_, first), (now, second) = criterion.said
    block = search.queue(search.candidates(probe, first), first, probe)
    block = block.plan(block.at_least(int(len(block.group) * 0.1)))
    rest = Budget(macs=0.5, groups="inner", spread="global")(second, now)
    assert all(torch.equal(plan[name], keep) for name, keep in lifted(block, rest).items())
    assert capsys.readouterr().out.count("last ranking") == 1


def test_a_loss_that_is_no_number_is_a_broken_net(configure, monkeypatch):
    probe, criterion = probe_of(configure, size=8), Told(n_samples=30, batch_size=30)
    search = Greedy(criterion=criterion, macs=0.5, groups="inner")
    scores = criterion(search.candidates(probe), probe)
    monkeypatch.setattr(Greedy, "loss", lambda self, now: math.nan)
    assert search(scores, probe) and len(criterion.said) == 1


def test_losses_are_those_on_the_images_of_the_criterion(configure, monkeypatch):
    """The growth at which it stops is told to the last digit by the images that are scored on."""
    probe, asked, loss = probe_of(configure, size=8), [], Probe.loss
    monkeypatch.setattr(Probe, "loss", lambda self, plan, n=1000: asked.append(n) or loss(self, plan, n))
    criterion = Told(n_samples=40, batch_size=30)
    search = Greedy(criterion=criterion, macs=0.7, groups="inner", step_fraction=0.3, max_loss_increase=100.0)
    search(criterion(search.candidates(probe), probe), probe)
    assert len(asked) > 2 and set(asked) == {40}
    assert all(now.seed == probe.seed for now, _ in criterion.said)


def test_new_statistics_are_those_of_the_images_and_nothing_else_changes(configure):
    """Against the moments of what a layer sees; the same every time; dropout and what is frozen stay as they were."""
    probe = probe_of(configure, size=8)
    net = remove(probe.net, {g.name: torch.arange(g.size) >= g.size // 2 for g in probe.groups if not g.coupled})
    net.bn1.momentum, net.layer1.training = 0.3, True
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    Recalibrate(120)(net, probe)
    after = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.endswith(("running_mean", "running_var")) for name in moved)
    assert [m.training for m in net.modules()] == modes and net.bn1.momentum == 0.3
    Recalibrate(120)(net, probe)
    assert all(torch.equal(tensor, after[name]) for name, tensor in net.state_dict().items())
    seen = torch.stack([net.conv1(x).detach().mean((0, 2, 3)) for x, _ in probe.data.plain(60, probe.seed, 120)])
    assert torch.allclose(net.bn1.running_mean, seen.mean(0), atol=1e-6)


@pytest.mark.parametrize("images", [2, 61, 10**6])
def test_any_number_of_images_gives_statistics(images, configure):
    """Batches of equal size: none of one image, with which batch norm could not do anything."""
    probe = probe_of(configure, size=8)
    net = Recalibrate(images)(copy.deepcopy(probe.net), probe)
    assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values())


def test_a_net_without_batch_norm_needs_no_images():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(2, 2))
    assert Recalibrate(10)(net, Probe(net, torch.zeros(1, 1, 1, 1))) is net


@pytest.mark.parametrize("make", [lambda: Recalibrate(1), lambda: Greedy(criterion=LossIncrease(), macs=0.5,
                                                                         recalibrate=-5)])
def test_too_few_images_are_refused(make):
    with pytest.raises(UserError, match="at least 2 images"):
        make()


def test_greedy_with_new_statistics_is_above_random_at_half_the_macs(configure, weights, cifar10):
    """Top-1 of the public ResNet-20 on 500 images that nothing is chosen by, all with new statistics after pruning."""
    cfg = configure("dataset=cifar10", "dataset.normalize=imagenet", "dataset.limit=500", f"data_dir={cifar10}",
                    "dataset.size=32")
    net = models.build({"_target_": "reprune.models.resnet", "depth": 20,
                        "weights": str(weights / "resnet20-12fca82f.th")}).eval()
    probe = Probe(net, torch.zeros(1, 3, 32, 32), instantiate(cfg.dataset), batch_size=250)
    criterion, limits = LossIncrease(n_samples=64, batch_size=64, images=128), {"macs": 0.5, "groups": "inner"}
    search = partial(Greedy, criterion=criterion, step_fraction=0.2, **limits)

    def top1(plan) -> float:
        return evaluate(Recalibrate(500)(remove(net, plan), probe), probe.data.val(250))[1]

    scores = criterion(search().candidates(probe), probe)
    drawn = [Probe(net, probe.example, seed=seed) for seed in range(3)]
    random = [top1(Budget(**limits)(Random()(look.groups, look), look)) for look in drawn]
    found = top1(search(recalibrate=500)(scores, probe))
    assert found > sum(random) / 3 + 5 and found > max(random), (found, random)
