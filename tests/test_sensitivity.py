"""Rates from measured sensitivity: the drops are those of silenced nets, the rule is what it says, budgets are met."""

from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from reprune import models
from reprune.data import Data
from reprune.errors import UserError
from reprune.pipeline import allocate
from reprune.pruning.probe import Probe
from reprune.pruning.sensitivity import Sensitivity, tolerated

RATES = (0.125, 0.25, 0.5, 0.75, 0.9)


class HeldOut:
    """Images in memory, all of them held out."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y, self.parts = x, y, SimpleNamespace(val=torch.arange(len(x)))

    def val(self, batch_size, device="cpu"):
        return list(zip(self.x.split(batch_size), self.y.split(batch_size), strict=True))


@pytest.fixture(scope="module")
def probe() -> Probe:
    """Labels are what the net says, for every second image its second choice: a drop can have either sign."""
    torch.manual_seed(0)
    net = models.build({"_target_": "reprune.models.resnet", "depth": 8, "in_channels": 1}).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    x = torch.randn(40, 1, 16, 16)
    with torch.no_grad():
        net(x)
        first, second = net.eval()(x).topk(2).indices.T
    y = torch.where(torch.arange(len(x)) % 2 == 0, first, second)
    return Probe(net, x[:1], HeldOut(x, y), seed=3, batch_size=16)


@pytest.fixture(scope="module")
def scores(probe) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {g.name: torch.rand(g.size, generator=generator) for g in probe.groups}


def counts(plan: dict[str, Tensor]) -> dict[str, int]:
    return {name: int((~keep).sum()) for name, keep in plan.items()}


@pytest.fixture(scope="module")
def slow(probe, scores) -> dict[str, list[tuple[int, float]]]:
    """(filters, points of top-1 lost) at each rate of each group, one silenced net for each."""
    found, whole = {}, probe.accuracy({})
    for group in Sensitivity().candidates(probe):
        order = scores[group.name].argsort()
        for n in (int(group.size * rate) for rate in RATES):
            keep = torch.ones(group.size, dtype=torch.bool).index_fill(0, order[:n], False)
            found.setdefault(group.name, []).append((n, whole - probe.accuracy({group.name: keep})))
    return found


def rule(slow, tau: float) -> dict[str, int]:
    """The highest rate that costs at most tau points."""
    return {name: max([n for n, lost in row if lost <= tau + 1e-4], default=0) for name, row in slow.items()}


@pytest.mark.parametrize("images", [7, 16, 1000])
def test_drops_are_those_of_silenced_nets(images, probe, scores, slow):
    allocation = Sensitivity(rates=RATES, images=images)
    groups = allocation.candidates(probe)
    tried = torch.tensor([[n for n, _ in slow[g.name]] for g in groups])
    expected = torch.tensor([[lost for _, lost in slow[g.name]] for g in groups])
    assert torch.allclose(allocation.drops(groups, tried, scores, probe), expected, atol=1e-4)
    assert expected.min() < 0 < expected.max() and expected.unique().numel() > 5


@pytest.mark.parametrize("tau", [0.0, 2.5, 5.0, 20.0, 100.0])
def test_every_group_loses_its_lowest_scores_at_the_highest_tolerated_rate(tau, probe, scores, slow):
    plan = Sensitivity(rates=RATES[::-1], tau=tau)(scores, probe)
    assert counts(plan) == rule(slow, tau)
    for name, keep in plan.items():
        assert not (~keep).any() or scores[name][~keep].max() < scores[name][keep].min()
    if tau == 100:
        assert counts(plan) == {name: row[-1][0] for name, row in slow.items()}


def test_the_taus_of_the_test_above_tell_the_groups_apart(slow):
    plans = [tuple(rule(slow, tau).values()) for tau in (0.0, 2.5, 5.0, 20.0, 100.0)]
    assert len(set(plans)) == 5


@pytest.mark.parametrize("n", [5, 23])
def test_n_samples_is_the_number_of_images_measured_on(n, probe, scores):
    group = next(g for g in probe.groups if not g.coupled)
    x, y = probe.data.x[:n], probe.data.y[:n]
    few = Probe(probe.net, probe.example, HeldOut(x, y), batch_size=16)
    keep = torch.ones(group.size, dtype=torch.bool).index_fill(0, scores[group.name].argsort()[:12], False)
    found = Sensitivity(n_samples=n, images=16).drops([group], torch.tensor([[12]]), scores, probe).item()
    assert found == pytest.approx(few.accuracy({}) - few.accuracy({group.name: keep}), abs=1e-4)


def test_floors_hold_at_every_rate(probe, scores):
    plan = Sensitivity(rates=RATES, tau=100, min_filters=5, min_keep=0.4)(scores, probe)
    assert {n: int(k.sum()) for n, k in plan.items()} == {n: max(5, -(-len(k) * 4 // 10)) for n, k in plan.items()}


@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("kept", [0.9, 0.6, 0.45, 0.3])
def test_a_budget_takes_the_smallest_tau_and_no_filter_more_than_needed(unit, kept, probe, scores, slow):
    def spent(removed: dict[str, int]) -> int:
        plan = {n: torch.arange(len(scores[n])) >= k for n, k in removed.items()}
        return getattr(probe.cost(plan), unit)

    plan = Sensitivity(rates=RATES, **{unit: kept})(scores, probe)
    removed, budget = counts(plan), kept * getattr(probe.original.cost, unit)
    assert spent(removed) <= budget
    taus = sorted({round(lost, 4) for row in slow.values() for _, lost in row})
    tau = next(t for t in taus if spent(rule(slow, t)) <= budget)
    full, lower = rule(slow, tau), rule(slow, max((t for t in taus if t < tau), default=-1000))
    assert all(lower[n] <= removed[n] <= full[n] for n in removed)
    cut = {n: removed[n] - lower[n] for n in removed if removed[n] > lower[n]}      # what this tau adds
    spare = {n: removed[n] - (k == max(cut.values())) for n, k in cut.items()}
    assert cut and spent({**removed, **spare}) > budget           # one filter less where most were cut last
    for name, keep in plan.items():
        assert not (~keep).any() or scores[name][~keep].max() < scores[name][keep].min()


def test_a_share_of_a_budget_is_met_round_by_round(probe, scores):
    for share in (0.25, 0.5, 1.0):
        part = Probe(probe.net, probe.example, probe.data, share=share, original=probe.original)
        macs = part.cost(Sensitivity(rates=RATES, macs=0.5)(scores, part)).macs
        assert macs <= (1 - 0.5 * share) * probe.original.cost.macs < macs * 1.1


def test_order_ascending_begins_with_the_least_sensitive_group(probe, scores, slow):
    forward = Sensitivity(rates=RATES)(scores, probe)
    ascending = Sensitivity(rates=RATES, order="ascending")(scores, probe)
    mean = {name: sum(lost for _, lost in row) / len(row) for name, row in slow.items()}
    assert list(forward) == [g.name for g in probe.groups if g.name in slow]
    assert list(ascending) == sorted(mean, key=mean.get) != list(forward)
    assert len({round(m, 3) for m in mean.values()}) == len(mean)                   # no ties
    assert counts(ascending) == {n: counts(forward)[n] for n in ascending}


def test_only_candidates_are_measured(probe, scores, monkeypatch):
    asked, drops = [], Sensitivity.drops
    monkeypatch.setattr(Sensitivity, "drops", lambda self, groups, *a: (
        asked.append([g.name for g in groups]), drops(self, groups, *a))[1])
    plan = Sensitivity(rates=RATES, groups="inner", skip=["layer2"])(scores, probe)
    assert asked == [["layer1.0.conv1", "layer3.0.conv1"]] == [list(plan)]


def test_tolerated_looks_at_all_rates_not_only_at_the_first_that_is_too_high():
    tried, drops = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0.0, 7.0, 1.0, 9.0]])
    assert [tolerated(tried, drops, tau).item() for tau in (-1.0, 0.5, 1.0, 8.0, 9.0)] == [0, 1, 3, 3, 4]


def test_measuring_changes_neither_the_net_nor_its_mode(probe, scores):
    before = {k: v.clone() for k, v in probe.net.state_dict().items()}
    probe.net.train()
    Sensitivity(rates=(0.5,))(scores, probe)
    assert probe.net.training and all(torch.equal(v, before[k]) for k, v in probe.net.state_dict().items())
    probe.net.eval()


@pytest.mark.parametrize(("options", "words"), [
    *[({"rates": bad}, ["allocation.rates"]) for bad in ([], [0.0, 0.5], [0.5, 1.0], [-0.1], 0.5, None, ["a"])],
    ({"order": "backward"}, ["allocation.order", "backward", "forward", "ascending"]),
    ({"macs": 0.5, "params": 0.5}, ["either macs or params"]),
    ({"macs": 0.0}, ["allocation.macs", "0.0"]),
    ({"params": 1.5}, ["allocation.params", "1.5"]),
    ({"tau": -1.0}, ["tau", "-1.0"]),
    ({"images": 0}, ["images", "0"]),
    ({"n_samples": 0}, ["n_samples", "0"]),
    ({"groups": "some"}, ["allocation.groups", "some"]),
])
def test_a_bad_argument_gives_one_line_that_names_it(options, words):
    with pytest.raises(UserError) as caught:
        Sensitivity(**options)
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


def test_a_budget_out_of_reach_says_what_remains_at_the_highest_rate(probe, scores):
    with pytest.raises(UserError) as caught:
        Sensitivity(rates=[0.125, 0.25], macs=0.3)(scores, probe)
    most = {g.name: torch.arange(g.size) >= g.size // 4 for g in Sensitivity().candidates(probe)}
    remain = f"{probe.cost(most).macs / probe.original.cost.macs:.4g}"
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in ("0.3 of the macs", "0.25", remain, "rates")), line


def test_it_needs_held_out_images_and_never_opens_the_test_set(configure, monkeypatch):
    monkeypatch.setattr(Data, "test", lambda *a, **k: pytest.fail("the test set was opened"))
    net = models.build({"_target_": "reprune.models.resnet", "depth": 8, "in_channels": 1})
    choice = ["method=l1", "method/allocation=sensitivity", "method.allocation.tau=100", "method.allocation.rates=[.5]"]
    for val_size in (200, 0):
        cfg = configure(*choice, f"dataset.val_size={val_size}")
        look = Probe(net, torch.zeros(1, 1, 8, 8), instantiate(cfg.dataset))
        if val_size:
            assert all((~keep).any() for keep in allocate(instantiate(cfg.method), look).values())
        else:
            with pytest.raises(UserError, match="held-out.*val_size"):
                allocate(instantiate(cfg.method), look)


@pytest.mark.parametrize("options", [{"tau": 20.0}, {"macs": 0.6}, {"params": 0.5}])
def test_groups_that_are_cut_keep_a_multiple(probe, scores, options):
    allocation = Sensitivity(multiple=8, **options)
    plan = allocation(scores, probe)
    assert any(not keep.all() for keep in plan.values())
    assert all(keep.all() or keep.sum() > 0 and keep.sum() % 8 == 0 for keep in plan.values())
    if allocation.macs or allocation.params:
        whole = getattr(probe.original.cost, allocation.unit)
        spent = getattr(probe.cost(plan), allocation.unit) / whole
        assert allocation.kept - 0.12 < spent <= allocation.kept  # blocks of 8 of a ResNet-8


@pytest.mark.parametrize("given", [False, True])
def test_it_says_once_that_given_weights_have_seen_the_held_out_images(given, probe, scores, capsys):
    look = Probe(probe.net, probe.example, probe.data, batch_size=16, given=given)
    look.accuracy({})
    Sensitivity(rates=(0.5,))(scores, Probe(probe.net, probe.example, probe.data, given=given, original=look.original))
    assert capsys.readouterr().out.count("model.weights") == given
