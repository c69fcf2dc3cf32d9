"""Layer by layer: the budget is decided once, each layer is scored on the net as it is by then, a search may choose."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from ga_nets import resnet8
from hydra.utils import instantiate

from reprune.errors import UserError
from reprune.pipeline import allocate, prune, run
from reprune.pruning import Budget


def pruned_by(record: dict) -> int:
    return sum(before - after for before, after in record["widths"].values())


@pytest.mark.parametrize("spread", ["uniform", "global"])
def test_layer_by_layer_spends_a_budget_that_is_decided_once_on_the_unpruned_net(spread, configure, monkeypatch):
    budget = ["method=l1", "method/allocation=macs", "method.allocation.macs=0.6", f"method.allocation.spread={spread}",
              "method.allocation.normalize=max"]
    shot = run(configure(*budget))
    decided, nets, biases, ask = [], [], [], Budget.__call__
    monkeypatch.setattr(Budget, "__call__", lambda self, s, p: decided.append(p) or ask(self, s, p))

    def spy(method, probe, counts=None):
        nets.append((probe.cost({}).macs, counts))
        biases.append(probe.net.linear.bias.detach().clone())
        return allocate(method, probe, counts)

    monkeypatch.setattr("reprune.pipeline.allocate", spy)
    record = run(configure(*budget, "method/rounds=layer_by_layer", "method.rounds.layers=2"))
    assert record["pruned"]["macs"] <= 0.6 * record["baseline"]["macs"]
    assert record["widths"] == shot["widths"] and pruned_by(record) > 0
    assert len(decided) == 1 and nets[0] == (record["baseline"]["macs"], None)
    macs, counts = zip(*nets[1:], strict=True)
    assert macs[0] == nets[0][0] and list(macs) == sorted(set(macs), reverse=True)      # scored on the net as it is
    assert not any(torch.equal(a, b) for a, b in pairwise(biases[1:]))                  # and has recovered
    assert all(len(c) == 2 for c in counts[:-1]) and 1 <= len(counts[-1]) <= 2
    assert record["epochs"]["recover"] == len(counts) > 1
    names = [n for c in counts for n in c]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("choice", [["method=l1"], ["method=ga", "method/allocation=uniform"]])
def test_layer_by_layer_with_a_plan_that_removes_nothing_says_so(choice, configure):
    with pytest.raises(UserError, match="would remove no filter"):
        run(configure(*choice, "method/rounds=layer_by_layer", "method.allocation.rate=0.01"))


def test_the_search_takes_the_place_of_the_lowest_scores_in_every_round(configure):
    """ga with a criterion of its own for the counts: what goes is what the genetic algorithm says."""
    probe = resnet8()
    method = instantiate(configure("method=ga", "method/allocation=uniform", "method.criterion.n_samples=24",
                                   "method.search.generations=10").method)
    plan = allocate(method, probe, {"layer1.0.conv1": 8})
    turn = SimpleNamespace(counts={"layer1.0.conv1": 8})
    smaller, chosen = prune(method, turn, probe), method.search(plan, probe)["layer1.0.conv1"]
    assert torch.equal(smaller.layer1[0].conv1.weight, probe.net.layer1[0].conv1.weight[chosen])
    assert chosen.sum() == 8 and not torch.equal(chosen, plan["layer1.0.conv1"])
