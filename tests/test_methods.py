"""What every criterion must satisfy, whatever its formula."""

import ast
import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from reprune.errors import UserError
from reprune.methods.bn_tells import STATS, BNTells
from reprune.methods.l1 import FilterNorm
from reprune.methods.loss_increase import LossIncrease
from reprune.methods.slimming import Percentile
from reprune.models import build
from reprune.pipeline import allocate, run
from reprune.pruning import Global
from reprune.pruning.probe import Probe
from reprune.results.render.gallery import parts
from reprune.structure.groups import trace
from reprune.structure.surgery import remove, zero_filters

CONF = Path(__file__).resolve().parent.parent / "conf/method"
METHODS = sorted(file.stem for file in CONF.glob("*.yaml") if "\nprunes: false" not in file.read_text())   # filters


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5),
                        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.weight, -1, 1)
        nn.init.uniform_(norm.bias, -1, 1)
    return net.eval()


def look(net: nn.Module, example: torch.Tensor) -> Probe:
    """With eight random images, for criteria that look at some; of a contrast that wakes every filter. For those that
    read what training has learned: the norms of the filters."""
    x = 5 * torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    data = SimpleNamespace(name="eight", parts=SimpleNamespace(train=range(8), val=range(8)),
                           plain=lambda *_: [(x, torch.arange(8) % 4)], val=lambda *_: [(x, torch.arange(8) % 4)])
    probe = Probe(net, example, data)
    probe.carried = {"learned": {g.name: sum(w.norm(dim=1) for w in g.filters(net)).tolist() for g in probe.groups}}
    return probe


def criterion(method: str, configure):
    return instantiate(configure(f"method={method}").method).criterion


@pytest.mark.parametrize("method", [m for m in METHODS if m != "random"])
def test_permuting_filters_permutes_their_scores(method, configure):
    net, order = small_net(), torch.tensor([3, 0, 5, 1, 4, 2])
    example, score = torch.randn(1, 3, 12, 12), criterion(method, configure)
    before = score(look(net, example).groups, look(net, example))
    out = net(example)
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias, net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var):
            tensor.copy_(tensor[order].clone())
        net[3].weight.copy_(net[3].weight[:, order].clone())
    assert torch.allclose(net(example), out, atol=1e-5)           # the same function
    after = score(look(net, example).groups, look(net, example))
    assert torch.allclose(after["0"], before["0"][order], rtol=1e-5)
    assert torch.allclose(after["3"], before["3"], rtol=1e-5)
    assert not torch.equal(after["0"], before["0"])               # not constant: the permutation was visible


@pytest.mark.parametrize("method", METHODS)
def test_every_group_of_a_residual_net_gets_one_finite_score_per_filter(method, configure):
    probe = look(build({"_target_": "reprune.models.resnet", "depth": 8}), torch.zeros(1, 3, 32, 32))
    scores = criterion(method, configure)(probe.groups, probe)
    assert set(scores) == {g.name for g in probe.groups}
    for group in probe.groups:
        assert scores[group.name].shape == (group.size,) and scores[group.name].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_is_met_by_the_scores_of_every_method(method, configure):
    chosen = instantiate(configure(f"method={method}", "method/allocation=macs", "method.allocation.macs=0.6",
                                   "method.allocation.spread=global").method)
    probe = look(build({"_target_": "reprune.models.resnet", "depth": 8}), torch.zeros(1, 3, 32, 32))
    plan = allocate(chosen, probe)
    assert probe.cost(plan).macs <= 0.6 * probe.original.cost.macs
    assert all(mask.any() for mask in plan.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_score_does_not_change_the_net_nor_what_was_scored_before(method, configure):
    probe = look(small_net(), torch.zeros(1, 3, 12, 12))
    probe.net[1].train()
    before = {name: tensor.clone() for name, tensor in probe.net.state_dict().items()}
    score = criterion(method, configure)
    first, second = score(probe.groups, probe), score(probe.groups, look(probe.net, torch.zeros(1, 3, 12, 12)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], tensor) for name, tensor in probe.net.state_dict().items())
    assert [m.training for m in probe.net.modules()] == [m is probe.net[1] for m in probe.net.modules()]
    assert all(p.grad is None for p in probe.net.parameters())


@pytest.mark.parametrize("method", [*(m for m in METHODS if m != "random"), "loss_increase"])
def test_a_score_that_is_no_number_names_the_group_and_the_criterion(method, configure):
    net = small_net()
    for tensor in (net[0].weight, net[1].weight, net[3].weight):
        nn.init.constant_(tensor, float("nan"))
    probe = look(net, torch.zeros(1, 3, 12, 12))
    score = LossIncrease(n_samples=8) if method == "loss_increase" else criterion(method, configure)
    with pytest.raises(UserError, match=rf"^{type(score).__name__} scores 6 of the 6 filters of 0 as NaN: [^\n]*$"):
        score(probe.groups, probe)


@pytest.mark.parametrize("method", ["l1", "hgsr", "sfp", "l1std", "ga", "thinet", "lasso", "cap"])
def test_filters_that_are_zero_come_last(method, configure):
    net, example = small_net(), torch.zeros(1, 3, 12, 12)
    trace(net, example)
    with torch.no_grad():
        net[0].weight[2] = net[0].bias[2] = 0
        net[3].weight[:, 2] = 0
    probe = look(net, example)
    scores = criterion(method, configure)(probe.groups, probe)["0"]
    assert scores.argmin() == 2 and scores[2] == 0


def test_random_scores_depend_on_the_seed_alone(configure):
    net, example = small_net(), torch.zeros(1, 3, 12, 12)
    draw = criterion("random", configure)
    one, torch_state = Probe(net, example, seed=1), torch.get_rng_state()
    first = draw(one.groups, one)
    torch.rand(5)
    assert all(torch.equal(a, b) for a, b in zip(first.values(), draw(one.groups, one).values(), strict=True))
    two = Probe(net, example, seed=2)
    assert not torch.equal(first["0"], draw(two.groups, two)["0"])
    torch.set_rng_state(torch_state)


def test_soft_pruning_zeroes_filters_only_and_lets_them_come_back():
    net, example = small_net().train(), torch.randn(4, 3, 12, 12)
    trace(net, example)
    keep = torch.tensor([True, False, True, True, False, True])
    norm, reader = net[1].weight.clone(), net[3].weight.clone()
    zero_filters(net, {"0": keep})
    assert (net[0].weight[~keep] == 0).all() and (net[0].weight[keep] != 0).any()
    assert torch.equal(net[1].weight, norm) and torch.equal(net[3].weight, reader)
    nn.functional.cross_entropy(net(example), torch.tensor([0, 1, 2, 3])).backward()
    assert net[0].weight.grad[~keep].abs().sum() > 0              # an update brings it back


def test_slimming_reads_the_scale_of_the_filters_own_batch_norm(configure):
    net, example = small_net(), torch.zeros(1, 3, 12, 12)
    probe = Probe(net, example)
    scores = criterion("slimming", configure)(probe.groups, probe)
    assert torch.equal(scores["0"], net[1].weight.detach().abs())
    assert torch.equal(scores["3"], net[4].weight.detach().abs())


def test_l1_keeps_the_filters_with_the_larger_norm(configure):
    net, example = small_net(), torch.zeros(1, 3, 12, 12)
    method = instantiate(configure("method=l1").method)
    probe = Probe(net, example)
    smaller = remove(net, method.allocation(method.criterion(probe.groups, probe), probe))
    norms = net[0].weight.detach().abs().sum((1, 2, 3))
    assert torch.equal(smaller[0].weight.detach(), net[0].weight.detach()[norms >= norms.sort().values[3]])


def test_layer_by_layer_without_recovery_is_the_greedy_scoring_of_li2017(configure):
    """Kernels on maps that are removed already do not count: literally, filter by filter."""
    net, example = small_net(), torch.zeros(1, 3, 12, 12)
    net[3].weight.data[0, 0] *= 20                                # of a map that goes first: filter 0 lives by it
    plans = {}
    for rounds in (["one_shot"], ["layer_by_layer", "method.rounds.epochs=0"]):
        method = instantiate(configure("method=l1", "method/rounds=" + rounds[0], *rounds[1:]).method)
        now, kept = copy.deepcopy(net), {"0": list(range(6)), "3": list(range(5))}
        turns = list(method.rounds(lambda m=method: allocate(m, look(net, example))))
        for turn in turns:
            assert turn.last or turn.epochs == 0
            plan = allocate(method, look(now, example), turn.counts)
            kept |= {name: [i for i, keep in zip(kept[name], mask, strict=True) if keep] for name, mask in plan.items()}
            now = remove(now, plan)
        plans[rounds[0]] = kept
    first = sorted(range(6), key=lambda j: sum(abs(v) for v in net[0].weight[j].flatten().tolist()))[3:]
    for name, counted in (("one_shot", range(6)), ("layer_by_layer", first)):
        norms = [sum(abs(v) for i in counted for v in net[3].weight[j, i].flatten().tolist()) for j in range(5)]
        expected = {"0": sorted(first), "3": sorted(sorted(range(5), key=lambda j: norms[j])[2:])}
        assert plans[name] == expected
    assert plans["one_shot"] != plans["layer_by_layer"]           # the difference was visible


def test_a_residual_stage_goes_by_the_filters_of_its_projection():
    net = build({"_target_": "reprune.models.torchvision", "arch": "resnet18", "classes": 4})
    probe = Probe(net, torch.zeros(1, 3, 32, 32))
    scores = FilterNorm(coupled="projection")(probe.groups, probe)
    assert torch.allclose(scores["layer3.0.conv2"], net.layer3[0].downsample[0].weight.abs().sum((1, 2, 3)))
    assert torch.equal(scores["conv1"], FilterNorm()(probe.groups, probe)["conv1"])           # has no projection


def test_bn_tells_is_the_distribution_of_what_a_relu_gives_out():
    """Against the integral over the normal distribution, by a fine sum."""
    net, example = small_net(), torch.zeros(1, 3, 12, 12)
    net[1].weight.data[:2] = torch.tensor([0.0, -0.7])            # a constant, and a scale that is negative
    net[1].bias.data[0] = 0.4
    probe, u = Probe(net, example), torch.linspace(-8, 8, 100_001, dtype=torch.double)
    p = (-u.square() / 2).exp() / (2 * torch.pi) ** 0.5 * (u[1] - u[0])
    literal = {stat: [] for stat in STATS}
    for gamma, beta in zip(net[1].weight.tolist(), net[1].bias.tolist(), strict=True):
        y = (gamma * u + beta).clamp_min(0)
        mean, square = float((y * p).sum()), float((y.square() * p).sum())
        for stat, value in zip(STATS, (mean, square, max(0, square - mean ** 2) ** 0.5, float(((y > 0) * p).sum())),
                               strict=True):
            literal[stat].append(value)
    for stat, expected in literal.items():
        for normalise, scale in (("none", 1), ("mean", sum(expected) / 6), ("max", max(expected))):
            scores = BNTells(stat, normalise=normalise)(probe.groups, probe)["0"]
            assert scores.tolist() == pytest.approx([value / scale for value in expected], rel=1e-4, abs=2e-4)
    weighted = BNTells(next_weights=True, normalise="none")(probe.groups, probe)["0"].tolist()
    norms = [sum(abs(v) for v in net[3].weight[:, c].flatten().tolist()) for c in range(6)]
    assert weighted == pytest.approx([m * n for m, n in zip(literal["mean"], norms, strict=True)], rel=1e-4)


def test_a_percentile_is_of_all_scores_and_no_layer_makes_up_for_another():
    net, example = small_net(), torch.zeros(1, 3, 12, 12)
    probe = Probe(net, example)
    scores = {"0": torch.tensor([.01, .02, .03, .04, .05, .9]), "3": torch.tensor([.2, .3, .4, .5, .6])}
    plan = Percentile(rate=0.5)(scores, probe)                    # 5 of 11 lie below
    assert plan["0"].tolist() == [False] * 5 + [True] and plan["3"].all()
    plan = Percentile(rate=0.5, min_keep=0.5)(scores, probe)
    assert plan["0"].tolist() == [False] * 3 + [True] * 3 and plan["3"].all()
    assert not Global(rate=0.5, min_keep=0.5)(scores, probe)["3"].all()        # which does


def test_gamma_starts_at_a_half_where_the_penalised_training_starts_from_fresh_weights(configure, monkeypatch):
    seen = []
    monkeypatch.setattr("reprune.training.classifier.train", lambda module, *_: seen.append(
        (module.stage, {float(m.weight.detach().mean()) for m in module.net.modules()
                        if isinstance(m, nn.BatchNorm2d)})))
    monkeypatch.setattr("reprune.pipeline.check_alive", lambda *_: None)          # nothing has trained
    for fresh, init in (("true", "0.5"), ("false", "0.5"), ("true", "null")):
        run(configure("method=slimming", "method/allocation=uniform", f"recipe.sparse.from_scratch={fresh}",
                      f"method.penalties.gamma.init={init}"))
    assert [gammas for stage, gammas in seen if stage == "sparse"] == [{0.5}, {1.0}, {1.0}]


def literal_l1std(w: torch.Tensor, combine: str, alpha: float, over: str) -> list[float]:
    """Eq. 1 to 3 of Sun et al. with loops and math."""
    import math

    def spread(values):
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))

    n = [sum(abs(v) for v in f.flatten().tolist()) for f in w]
    kernels = [[k.flatten().tolist() for k in (f if over == "kernel" else [f])] for f in w]
    s = [sum(map(spread, ks)) / len(ks) for ks in kernels]
    n, s = [v / max(n) for v in n], [v / max(s) for v in s]
    return {"sum": [a + alpha * b for a, b in zip(n, s, strict=True)],
            "product": [a * b for a, b in zip(n, s, strict=True)], "l1": n, "std": s}[combine]


@pytest.mark.parametrize("combine", ["sum", "product", "l1", "std"])
@pytest.mark.parametrize("over", ["filter", "kernel"])
def test_l1std_is_its_equations(combine, over):
    from reprune.methods.l1std import L1Std

    net, example = small_net(), torch.zeros(1, 3, 12, 12)
    probe = Probe(net, example)
    scores = L1Std(combine, alpha=0.7, std_over=over)(probe.groups, probe)
    expected = torch.tensor(literal_l1std(net[0].weight.detach(), combine, 0.7, over))
    assert torch.allclose(scores["0"], expected, rtol=1e-5)


def test_a_probe_reads_held_out_images_and_never_the_test_set(configure, monkeypatch):
    from reprune.data import Data
    from reprune.pruning.probe import evaluate

    monkeypatch.setattr(Data, "test", lambda *a, **k: pytest.fail("the test set was opened"))
    data = instantiate(configure().dataset)
    probe = Probe(build({"_target_": "reprune.models.resnet", "depth": 8, "in_channels": 1}), torch.zeros(1, 1, 8, 8),
                  data, batch_size=50)
    group = next(g for g in probe.groups if not g.coupled)
    keep = torch.arange(group.size) > 0
    smaller = remove(probe.net, {group.name: keep})
    assert probe.accuracy({}) == evaluate(probe.net, data.val(50))[1]
    assert probe.accuracy({group.name: keep}) == evaluate(smaller, data.val(50))[1]
    assert probe.loss({group.name: keep}, 60) == pytest.approx(evaluate(smaller, data.plain(50, 0, 60))[0], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_what_it_needs_and_where_it_deviates(method):
    file = CONF.parents[1] / f"src/reprune/methods/{method}.py"
    said = parts(ast.get_docstring(ast.parse(file.read_text())))
    assert said["title"] and said["needs"] and said["deviations"] and (said["citation"] or method == "random")
    needs = {need for clause in said["needs"].split(";") for need in clause.strip().split(", ")}
    assert needs & {"nothing", "weights", "images", "labels", "gradients", "training"}
