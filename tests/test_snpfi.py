"""snpfi is its formulas: against coalitions played one by one on the silenced net."""

import itertools
import math

import pytest
import torch
from ga_nets import images, lively, look, reading, resnet8
from hydra.utils import instantiate
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.methods.coalitions import coalitions, contributions, orders
from reprune.methods.snpfi import Game, Interactions, Utilization, quadruples
from reprune.structure.suffix import Suffix


def literal_value(net, x, y, some, value: str) -> float:
    """Eq. 1: behind the activation, all filters of the first conv but `some` are zero."""
    def silence(module, inputs):
        h = inputs[0].clone()
        h[:, [i for i in range(h.shape[1]) if i not in some]] = 0
        return h

    hook = net[3].register_forward_pre_hook(silence)
    with torch.no_grad():
        p = net(x).double().softmax(1)
    hook.remove()
    p = [float(row[label]) for row, label in zip(p, y, strict=True)]
    return sum(math.log(v) - (math.log(1 - v) if value == "log_odds" else 0) for v in p) / len(p)


@pytest.mark.parametrize(("inner", "value"), [(4, "log_p"), (5, "log_odds")])       # 5: one has no partner
def test_importance_and_utilization_are_those_of_coalitions_played_one_by_one(inner, value):
    x, y = images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    net = lively(reading(nn.Conv2d(inner, 4, 3), inner), x)
    probe, game = look(net, x, y, seed=5), Game(n_samples=6, contexts=8, pair_contexts=2, value=value)
    group = probe.groups[0]
    phi, strength = game.play([group], probe)["0"]
    by_norm = sorted(range(inner), key=lambda i: float(net[0].weight[i].detach().norm()))

    def v(players):                                               # 4 orders of pairs, drawn over the sorted filters
        return literal_value(net, x, y, {by_norm[p] for p in players if p < inner}, value)

    expected, interactions = [0.0] * inner, {}
    for turn, order in enumerate(orders(inner, 4, 2, probe.generator())):
        s: set[int] = set()
        for i, j in order.tolist():
            for p, other in ((i, j), (j, i)):                     # the context before, and the one after the other
                if p < inner:
                    for context in (s, s | {other}):
                        expected[by_norm[p]] += (v(context | {p}) - v(context)) / 8
            if max(i, j) < inner:
                key = (turn // 2, min(i, j))
                interactions[key] = interactions.get(key, 0) + (v(s | {i, j}) - v(s | {i}) - v(s | {j}) + v(s)) / 2
            s |= {i, j}
    assert phi.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    everyone = v(range(inner)) - v(())
    mean = sum(map(abs, interactions.values())) / len(interactions)
    assert strength == pytest.approx(mean / abs(everyone), rel=1e-6)
    assert float(phi.sum()) == pytest.approx(everyone, rel=1e-6)  # nothing is lost or counted twice


def test_over_all_orders_it_is_the_shapley_value():
    """A game with a value for every set: sum over all sets, weighted by |S|! (m - |S| - 1)! / m!"""
    m, worths = 4, torch.rand(16, generator=torch.Generator().manual_seed(0)).double()

    def v(mask):
        return worths[sum(1 << i for i in range(m) if mask[i])]

    exact = [sum(math.factorial(len(s)) * math.factorial(m - len(s) - 1) / math.factorial(m) *
                 float(v([k in s or k == i for k in range(m)]) - v([k in s for k in range(m)]))
                 for n in range(m) for s in itertools.combinations([k for k in range(m) if k != i], n))
             for i in range(m)]
    every = [torch.tensor(o).view(2, 2) for o in itertools.permutations(range(m))]
    phi = torch.stack([contributions(torch.stack([v(s) for s in coalitions(o).tolist()]), o)[0] for o in every]).mean(0)
    assert phi.tolist() == pytest.approx(exact)


def test_pairs_stay_together_for_as_many_contexts_as_asked():
    drawn = orders(6, 4, 2, torch.Generator().manual_seed(1))
    pairs = [{frozenset(p) for p in order.tolist()} for order in drawn]
    assert pairs[0] == pairs[1] != pairs[2] == pairs[3] and not torch.equal(drawn[0], drawn[1])
    assert all(order.flatten().sort().values.tolist() == list(range(6)) for order in drawn)


class Told(Game):
    """With strengths that it is told."""

    def __init__(self, *strengths: float):
        super().__init__()
        self.strengths = strengths

    def play(self, groups, probe):
        return {g.name: (torch.arange(float(g.size)), u) for g, u in zip(groups, self.strengths, strict=True)}


@pytest.mark.parametrize("rule", ["inverse", "uniform"])
def test_layers_that_interact_least_lose_most(rule):
    probe = resnet8()
    groups = [g for g in probe.groups if not g.coupled]           # 16, 32 and 64 filters
    plan = Utilization(game=Told(0.1, 0.2, 0.4), macs=0.7, groups="inner", rule=rule)(
        {g.name: torch.arange(float(g.size)) for g in groups}, probe)
    gone = [int((~plan[g.name]).sum()) for g in groups]
    weight = [0.75, 0.5, 0] if rule == "inverse" else [1, 1, 1]
    scales = [s / 1000 for s in range(2000)]

    def counts(s):
        return [int(min(s * w, 0.9) * g.size + 1e-9) for w, g in zip(weight, groups, strict=True)]

    def macs(counts):
        return probe.cost({g.name: torch.arange(g.size) >= n for g, n in zip(groups, counts, strict=True)}).macs

    expected = counts(next(s for s in scales if macs(counts(s)) <= 0.7 * probe.cost({}).macs))
    assert macs(gone) <= 0.7 * probe.cost({}).macs
    assert all(abs(a - b) <= (b > 0) for a, b in zip(gone, expected, strict=True))            # two are due at once
    assert all(plan[g.name].tolist() == [i >= n for i in range(g.size)] for g, n in zip(groups, gone, strict=True))


def test_what_cannot_be_met_or_measured_is_one_line(configure):
    probe = resnet8()
    groups = [g for g in probe.groups if not g.coupled]
    with pytest.raises(UserError, match="^a budget of 0.1 of the macs cannot be met: [^\n]*rho_max[^\n]*$"):
        Utilization(game=Told(1, 1, 1), macs=0.1, groups="inner")({g.name: torch.ones(g.size) for g in groups}, probe)
    method = instantiate(configure("method=l1", "method/allocation=utilization").method)
    with pytest.raises(UserError, match="^allocation.game must be a [^\n]*Game[^\n]*FilterNorm[^\n]*$"):
        method.check(probe)


def difference(before, after, x, y, plan, sets) -> float:
    """Eq. 6 of one layer. sets: of those that stay, four a triple"""
    stay = plan["0"].nonzero().flatten().tolist()
    found = []
    for four in sets.view(-1, 4, sets.shape[1]).tolist():
        d = 0.0
        for some, sign in zip(four, (1, -1, -1, 1), strict=True):
            some = [k for k, part in enumerate(some) if part]
            d += sign * (literal_value(after, x, y, some, "log_p")
                         - literal_value(before, x, y, {stay[k] for k in some}, "log_p"))
        found.append(d ** 2)
    return sum(found) / len(found)


def test_recovery_brings_the_interactions_back_and_leaves_batch_norm_alone():
    x, y = images(6, dtype=torch.float32), torch.tensor([0, 1, 2, 0, 1, 2])
    plan = {"0": torch.tensor([True, False, True, True, False, True]), "3": torch.arange(4) > 0}
    sets, repair = quadruples(4, 8, torch.Generator().manual_seed(7)), Interactions(steps=120, rate=1e-3, batch=6)
    wider, found = torch.zeros(len(sets), 6, dtype=torch.bool), []
    wider[:, plan["0"]] = sets
    for seed in range(4):                                         # filters that hardly interact leave nothing to bring
        torch.manual_seed(seed)
        net = lively(reading(nn.Conv2d(6, 4, 3)), x.double()).float()
        net[6].weight.data *= 20                                  # the last layer: interactions that can be seen
        probe, smaller = look(net, x, y), reprune.remove(net, plan)
        before, now = difference(net, smaller, x, y, plan, sets), reprune.trace(smaller, x[:1])[0]
        with torch.no_grad():
            d = [repair.interaction(Suffix(n, x, y), g, s) for n, g, s in
                 ((smaller, now, sets), (net, probe.groups[0], wider))]
        assert float((d[0] - d[1]).square().mean()) == pytest.approx(before, rel=1e-2)
        mean = smaller[1].running_mean.clone()
        net.train(seed == 0)                                      # as one that came with its weights
        repaired = repair(smaller, probe)
        net.eval()
        assert torch.equal(repaired[1].running_mean, mean) and all(p.grad is None for p in repaired.parameters())
        found.append((before, difference(net, repaired, x, y, plan, sets)))
    was, is_ = map(sum, zip(*found, strict=True))
    assert is_ < 0.3 * was != 0
