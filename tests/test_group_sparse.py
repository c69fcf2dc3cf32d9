"""Group sparse regularisation: equal to its formula read literally, safe at zero; what it empties goes."""

import math

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from reprune.errors import UserError
from reprune.methods.group_sparse import Dead, GroupSparse
from reprune.pipeline import run
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Step
from reprune.structure.groups import trace

EXAMPLE = torch.zeros(1, 3, 4, 4)


def small_net():
    """A conv, a depthwise conv, a flattened map of four places and a linear layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1, groups=6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5),
                        nn.ReLU(), nn.Linear(5, 2))
    trace(net, EXAMPLE)
    return net


def step_of(net):
    return Step(net, torch.zeros(1), torch.zeros(1), torch.zeros(1, 2))


def literal_groups(net):
    """Every group of weights as a list of numbers, by hand."""
    groups = [net[0].weight[:, c].flatten().tolist() for c in range(3)]
    groups += [net[1].weight[c].flatten().tolist() for c in range(6)]
    groups += [net[4].weight[:, 4 * c: 4 * c + 4].flatten().tolist() for c in range(6)]
    groups += [net[6].weight[:, c].tolist() for c in range(5)]
    return groups + [[b] for m in (net[0], net[1], net[4], net[6]) for b in m.bias.tolist()]


@pytest.mark.parametrize("with_l1", [False, True])
def test_the_penalty_is_the_literal_sum_over_groups(with_l1):
    net = small_net()
    groups = literal_groups(net)
    expected = sum(math.sqrt(len(g)) * math.sqrt(sum(v * v for v in g)) for g in groups)
    expected += with_l1 * sum(abs(v) for g in groups for v in g)
    assert GroupSparse(0.1, with_l1)(step_of(net)).item() == pytest.approx(0.1 * expected, rel=1e-4)


@pytest.mark.parametrize("groups", ["outgoing", "incoming"])
def test_exact_zeros_have_no_gradient_and_no_nan(groups):
    net = small_net()
    for p in net.parameters():
        nn.init.zeros_(p)
    GroupSparse(1.0, groups=groups)(step_of(net)).backward()
    assert not any(p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("with_l1", [False, True])
def test_the_proximal_step_shrinks_every_group_and_stands_for_the_lasso_in_the_loss(with_l1):
    net = small_net()
    groups, step = literal_groups(net), 0.1 * 0.2
    GroupSparse(0.2, with_l1, proximal=True).after_step(net, 0.1)
    for before, after in zip(groups, literal_groups(net), strict=True):
        norm = math.sqrt(sum(v * v for v in before))
        factor = max(0, 1 - step * math.sqrt(len(before)) / norm)
        assert after == pytest.approx([factor * v for v in before], rel=1e-4, abs=1e-8)
    l1 = sum(abs(v) for g in literal_groups(net) for v in g)
    assert GroupSparse(1.0, with_l1, proximal=True)(step_of(net)).item() == pytest.approx(with_l1 * l1, rel=1e-5)
    GroupSparse(100.0, proximal=True).after_step(net, 1.0)
    assert not any(p.any() for p in net.parameters())             # exactly zero, which a sub-gradient never is


def test_incoming_groups_are_filters():
    net = small_net()
    shrunk = net[0].weight[2] * (1 - 0.01 * 27 ** 0.5 / net[0].weight[2].norm())
    GroupSparse(1.0, groups="incoming", proximal=True).after_step(net, 0.01)
    torch.testing.assert_close(net[0].weight[2], shrunk)


def test_what_lies_below_the_threshold_goes_but_never_a_whole_layer(configure):
    net = small_net()
    net[4].weight.data[:, 4:12] = 1e-5                            # channels 1 and 2
    probe = Probe(net, EXAMPLE)
    scores = instantiate(configure("method=group_sparse").method).criterion(probe.groups, probe)
    plan = Dead()({"0": scores["0"]}, probe)
    assert plan["0"].tolist() == [True, False, False, True, True, True]
    assert Dead(threshold=1e9)({"0": scores["0"]}, probe)["0"].sum() == 1


def test_a_run_takes_a_proximal_step_after_every_step_of_the_penalised_training(configure, monkeypatch):
    rates, after_step = [], GroupSparse.after_step
    monkeypatch.setattr(GroupSparse, "after_step", lambda self, net, rate: rates.append(rate) or after_step(
        self, net, rate))
    record = run(configure("method=group_sparse", "method.penalties.group_sparse.proximal=true",
                           "method.penalties.group_sparse.with_l1=false", "recipe.sparse.scheduler=null"))
    assert len(rates) >= 2 and set(rates) == {record["config"]["recipe"]["sparse"]["optimizer"]["lr"]}
    assert record["curves"]["sparse"]["penalty/group_sparse"] == [0]


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="weight"):
        GroupSparse(-1)
    with pytest.raises(UserError, match="groups"):
        GroupSparse(groups="sideways")
    with pytest.raises(UserError, match="no nn.Conv2d"):
        GroupSparse().check([], Probe(nn.Sequential(nn.Flatten(), nn.ReLU()), EXAMPLE))
