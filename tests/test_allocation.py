"""Scores -> plan: budgets are met and just met, floors hold, permutations commute, and Li et al.'s rows come out."""

import functools
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from reprune import models
from reprune.errors import UserError
from reprune.methods.l1 import FilterNorm
from reprune.pruning.allocation import PerLayer, Uniform, keep_best, removed
from reprune.pruning.probe import Probe
from reprune.pruning.ranking import Budget, Global
from reprune.pruning.sensitivity import Sensitivity
from reprune.structure.cost import cost
from reprune.structure.names import conv_numbers
from reprune.structure.surgery import remove

ROWS = ("resnet56-A", "resnet56-B", "resnet110-A", "resnet110-B", "vgg16-A")       # of Table 1, Li et al. 2017


@functools.cache
def probe(name: str) -> Probe:
    """A net of three wirings: plain, option-A shortcuts, projections. Allocations only read it."""
    torch.manual_seed(0)
    net = {"vgg": lambda: models.vgg(16), "resnet": lambda: models.resnet(20),
           "stem": lambda: models.resnet_cifar_stem(18)}[name]()
    return Probe(net, torch.zeros(1, 3, 32, 32))


def random_scores(probe: Probe, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator) for g in probe.groups}


ALLOCATIONS = {
    "uniform": Uniform(rate=0.37), "uniform, kept": Uniform(rate=0.37, rounding="kept", groups="inner"),
    "per layer": PerLayer(rates={"*": 0.3, 1: 0.5, 8: 0.7}),
    "global": Global(rate=0.45), "global, normalised": Global(rate=0.45, normalize="max", min_filters=3),
    "macs, uniform": Budget(macs=0.5), "macs, global": Budget(macs=0.5, spread="global"),
    "params, uniform": Budget(params=0.4), "params, global": Budget(params=0.4, spread="global", min_keep=0.1),
    "macs, inner": Budget(macs=0.6, groups="inner"),
    "uniform, 8": Uniform(rate=0.4, multiple=8), "per layer, 8": PerLayer(rates={"*": 0.3, 1: 0.5, 8: 0.7}, multiple=8),
    "global, 8": Global(rate=0.45, multiple=8), "macs, global, 8": Budget(macs=0.5, spread="global", multiple=8),
    "params, uniform, 8": Budget(params=0.4, multiple=8), "macs, uniform, 6": Budget(macs=0.5, multiple=6),
}


@pytest.mark.parametrize("net", ["vgg", "resnet", "stem"])
@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("spread", ["uniform", "global"])
@pytest.mark.parametrize("kept", [0.8, 1 / 2.11, 0.2])
def test_a_budget_is_met_and_one_filter_fewer_would_not_meet_it(net, unit, spread, kept):
    """At the lowest budget counted on the net really removed. Uniform goes by rate, so its last filter is any of those
    of the highest rate; of the filters a global threshold takes, the last is the one with the highest score."""
    look = probe(net)
    scores = random_scores(look)
    plan = Budget(**{unit: kept}, spread=spread)(scores, look)
    budget = kept * getattr(look.cost({}), unit)
    assert getattr(look.cost(plan), unit) <= budget
    if kept == 0.2:
        assert cost(remove(look.net, plan), look.example) == look.cost(plan)

    def position(name, filter):                               # in the queue: the filter with the largest goes last
        if spread == "global":
            return scores[name][filter].item()
        rank = int((scores[name] < scores[name][filter]).sum()) + 1
        return rank / len(scores[name])

    gone = [(position(n, f), n, f) for n, mask in plan.items() for f in (~mask).nonzero().flatten().tolist()]
    stay = [position(n, f) for n, mask in plan.items() if mask.sum() > 1 for f in mask.nonzero().flatten().tolist()]
    last = max(gone)[0]
    assert last <= min(stay)
    spared = []
    for at, name, f in gone:
        if at == last:
            mask = plan[name].clone()
            mask[f] = True
            spared.append(getattr(look.cost({**plan, name: mask}), unit))
    assert max(spared) > budget


@pytest.mark.parametrize("net", ["vgg", "resnet"])
@pytest.mark.parametrize("floor", [{"min_filters": 5}, {"min_keep": 0.3}, {"min_filters": 9, "min_keep": 0.5}])
@pytest.mark.parametrize("allocation", [functools.partial(Uniform, rate=0.95),
                                        functools.partial(Global, rate=0.95, min_keep=0)])
def test_no_group_shrinks_below_its_floor(net, floor, allocation):
    look = probe(net)
    plan = allocation(**floor)(random_scores(look), look)
    for group in look.groups:
        if group.name in plan:
            least = max(floor.get("min_filters", 1), floor.get("min_keep", 0) * group.size)
            assert least <= plan[group.name].sum() or plan[group.name].all()      # a group already below stays whole
    assert any(plan[g.name].sum() == max(floor.get("min_filters", 1), -(-floor.get("min_keep", 0) * g.size // 1))
               for g in look.groups if g.name in plan)


@pytest.mark.parametrize("net", ["vgg", "resnet"])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_permuting_filters_permutes_the_plan(net, name):
    """Which filter goes depends on its score, not on where it stands; the lowest scores of a group go first."""
    look, allocation = probe(net), ALLOCATIONS[name]
    scores = random_scores(look)
    plan = allocation(scores, look)
    assert removed(plan) > 0
    order = {g.name: torch.randperm(g.size, generator=torch.Generator().manual_seed(7)) for g in look.groups}
    permuted = allocation({n: s[order[n]] for n, s in scores.items()}, look)
    assert plan.keys() == permuted.keys()
    for group, mask in plan.items():
        assert torch.equal(permuted[group], mask[order[group]])
        if not mask.all():
            assert scores[group][~mask].max() < scores[group][mask].min()


@pytest.mark.parametrize("net", ["vgg", "resnet"])
@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("steps", [3])
def test_several_shares_end_where_one_shot_ends(net, name, steps):
    """Each round removes from the net the last one left, and aims at a share of the reduction of the original; with
    scores that do not change the same filters go."""
    look, allocation = probe(net), ALLOCATIONS[name]
    scores = random_scores(look)
    once = allocation(scores, look)
    turn, left = look, scores
    for k in range(1, steps + 1):
        turn = Probe(turn.net, turn.example, share=k / steps, original=look.original)
        plan = allocation(left, turn)
        left = {n: s[plan[n]] if n in plan else s for n, s in left.items()}
        turn = Probe(remove(turn.net, plan, check=False), turn.example, original=look.original)
    for group, mask in once.items():
        assert torch.equal(left[group], scores[group][mask]), group
    assert turn.cost({}) == look.cost(once)


@pytest.mark.parametrize("net", ["vgg", "resnet"])
@pytest.mark.parametrize("name", [name for name, a in ALLOCATIONS.items() if a.multiple > 1])
def test_a_group_that_is_cut_keeps_a_multiple(net, name):
    look, allocation = probe(net), ALLOCATIONS[name]
    plan = allocation(random_scores(look), look)
    assert removed(plan) > 0
    for group, mask in plan.items():
        assert mask.all() or mask.sum() > 0 and mask.sum() % allocation.multiple == 0, group
    if isinstance(allocation, Budget):
        assert getattr(look.cost(plan), allocation.unit) <= allocation.kept * getattr(look.cost({}), allocation.unit)


@pytest.mark.parametrize("spread", ["uniform", "global"])
def test_a_budget_in_blocks_is_met_and_one_block_fewer_would_not_meet_it(spread):
    look = probe("vgg")
    scores = random_scores(look)
    plan = Budget(macs=0.5, spread=spread, multiple=8)(scores, look)
    budget = 0.5 * look.cost({}).macs
    spared = []
    for name, mask in plan.items():
        back = keep_best(scores[name], max(0, int((~mask).sum()) - 8))        # its last block stays
        spared.append(look.cost({**plan, name: back}).macs)
    assert look.cost(plan).macs <= budget < max(spared)


@pytest.mark.parametrize(("size", "rate", "multiple", "floor", "kept"), [
    (16, 0.25, 8, 1, 16), (16, 0.32, 8, 1, 8), (20, 0.1, 8, 1, 20), (20, 0.15, 8, 1, 16), (20, 0.5, 8, 1, 8),
    (16, 0.9, 8, 1, 8), (64, 0.9, 8, 9, 16), (6, 0.9, 8, 1, 6), (6, 0.5, 3, 1, 3), (20, 0.9, 8, 17, 20)])
def test_a_rate_goes_to_the_nearest_multiple_above_the_floor_or_the_whole_group(size, rate, multiple, floor, kept):
    look, group = SimpleNamespace(share=1.0, original=SimpleNamespace(sizes={})), SimpleNamespace(name="c", size=size)
    allocation = Uniform(min_filters=floor, multiple=multiple)
    assert size - allocation.count(group, rate, look) == kept
    assert size - Sensitivity.count(Sensitivity(min_filters=floor, multiple=multiple), group, rate, look) == kept


def test_a_global_rate_in_blocks_is_missed_by_half_a_block_at_most():
    look = probe("vgg")
    total = sum(g.size for g in Global().candidates(look))
    for rate in (0.1, 0.37, 0.5, 0.8):
        assert abs(removed(Global(rate=rate, multiple=8)(random_scores(look), look)) - rate * total) <= 4


@pytest.mark.parametrize(("rate", "rounding", "gone"), [
    (0.3, "removed", 4), (0.3, "kept", 5), (0.5, "removed", 8), (0.5, "kept", 8),        # 0.3 * 16 = 4.8, 11.2 stay
    (0.1, "removed", 1), (0.1, "kept", 2), (0.0, "removed", 0), (0.0, "kept", 0), (0.99, "kept", 15)])
def test_the_two_roundings_of_a_rate(rate, rounding, gone):
    """int(C rate) filters go, or int(C (1 - rate)) stay: published code does either. One filter always stays."""
    look = probe("resnet")
    plan = Uniform(rate=rate, rounding=rounding)(random_scores(look), look)
    sixteen = [m for m in plan.values() if len(m) == 16]
    assert len(sixteen) > 3 and all(int((~m).sum()) == gone for m in sixteen)


def test_rates_that_floating_point_cannot_hold_are_counted_as_written():
    """0.1 * 30 is 2.9999999999999996 in floating point; 3 filters of 30 go."""
    look = SimpleNamespace(share=1.0, original=SimpleNamespace(sizes={}))
    for size in range(1, 200):
        for tenths in range(10):
            gone = Uniform().count(SimpleNamespace(name="conv", size=size), tenths / 10, look)
            assert gone == min(size * tenths // 10, size - 1)


def test_a_layer_is_named_by_number_prefix_or_pattern_and_the_last_entry_counts():
    look = probe("resnet")
    numbers = conv_numbers(look.net)
    assert list(numbers.values()) == list(range(1, 20)) and numbers["layer2.0.conv1"] == 8
    plan = PerLayer(rates={"layer2": 0.25, 8: 0.5, "layer3.*.conv1": 0.75}, groups="inner")(random_scores(look), look)
    assert {n: int((~m).sum()) for n, m in plan.items()} == {
        "layer2.0.conv1": 16, "layer2.1.conv1": 8, "layer2.2.conv1": 8,
        "layer3.0.conv1": 48, "layer3.1.conv1": 48, "layer3.2.conv1": 48}
    plan = Uniform(rate=0.5, skip=[8, "layer1", "layer3.?.conv1"], groups="inner")(random_scores(look), look)
    assert list(plan) == ["layer2.1.conv1", "layer2.2.conv1"]


def test_inner_groups_are_those_no_addition_couples():
    look = probe("stem")
    plan = Uniform(rate=0.5, groups="inner")(random_scores(look), look)
    assert list(plan) == [f"layer{s}.{b}.conv1" for s in range(1, 5) for b in range(2)]


@pytest.mark.parametrize("row", ROWS)
def test_the_reductions_of_table_1_come_out_without_training(row, configure):
    """A claim's drop of MACs and parameters depends on the architecture and the rates only."""
    cfg = configure(f"experiments=li2017/{row}", "dataset.data_dir=none", tiny=False)
    net = models.build(OmegaConf.to_container(cfg.model, resolve=True))
    look = Probe(net, torch.zeros(1, 3, 32, 32))
    method = instantiate(cfg.method)
    assert isinstance(method.criterion, FilterNorm)
    before, after = look.cost({}), look.cost(method.allocation(method.criterion(look.groups, look), look))
    assert 100 * (1 - after.macs / before.macs) == pytest.approx(cfg.claim.macs_drop, abs=0.1)
    assert 100 * (1 - after.params / before.params) == pytest.approx(cfg.claim.params_drop, abs=0.1)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Uniform(rate=1.0), "allocation.rate must be at least 0 and below 1"),
    (lambda: Uniform(rate=-0.1), "allocation.rate must be at least 0 and below 1"),
    (lambda: Uniform(rate=float("nan")), "allocation.rate must be at least 0 and below 1"),
    (lambda: Uniform(rounding="up"), "'up' is not known, choose one of removed, kept"),
    (lambda: Uniform(groups="outer"), "'outer' is not known, choose one of all, inner"),
    (lambda: Uniform(min_filters=0), "allocation.min_filters must be at least 1"),
    (lambda: Budget(macs=0.5, multiple=0), "allocation.multiple must be a whole number, at least 1 (1: any number may"),
    (lambda: Uniform(multiple=2.5), "allocation.multiple must be a whole number"),
    (lambda: Global(multiple="8"), "allocation.multiple must be a whole number"),
    (lambda: Uniform(min_keep=1.2), "allocation.min_keep must be"),
    (lambda: PerLayer(rates={"layer1": 1.0}), "allocation.rates[layer1] must be"),
    (lambda: Global(normalize="sum"), "'sum' is not known"),
    (lambda: Budget(), "give either macs or params"),
    (lambda: Budget(macs=0.5, params=0.5), "give either macs or params"),
    (lambda: Budget(macs=0.0), "allocation.macs is the fraction to keep"),
    (lambda: Budget(params=1.5), "allocation.params is the fraction to keep"),
    (lambda: Budget(macs=0.5, spread="even"), "'even' is not known"),
])
def test_settings_out_of_range_are_refused_before_any_work(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("allocation", "words"), [
    (PerLayer(rates={"layer9": 0.5}), "'layer9' matches no conv of this net (1..19"),
    (PerLayer(rates={20: 0.5}), "20 matches no conv of this net (1..19"),
    (Uniform(skip=["stem"]), "allocation.skip: 'stem' matches no conv"),
    (Uniform(skip=["*"]), "nothing to prune"),
    (Budget(macs=0.001), "a budget of 0.001 of the macs cannot be met"),
    (Budget(macs=0.05, multiple=32), "allow more groups, a lower floor or a smaller multiple than 32"),
    (Budget(params=0.3, groups="inner", min_keep=0.5), "a budget of 0.3 of the params cannot be met"),
])
def test_what_this_net_cannot_give_is_refused_in_one_line(allocation, words):
    look = probe("resnet")
    with pytest.raises(UserError) as caught:
        allocation(random_scores(look), look)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_global_ranking_leaves_a_tenth_of_every_group_unless_told_otherwise():
    look = probe("vgg")
    scores, weak = random_scores(look), look.groups[3].name
    scores[weak] = 1e-6 * scores[weak]
    kept = Global(rate=0.5)(scores, look)[weak]
    assert kept.sum() == -(-len(kept) // 10)
    assert Global(rate=0.5, min_keep=0)(scores, look)[weak].sum() == 1
