"""Soft pruning: SFP and FPGM do what their authors' code does, and what is silent at the end goes."""

import math

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from reprune.errors import UserError
from reprune.methods.fpgm import GeometricMedian
from reprune.methods.l1 import FilterNorm
from reprune.models import build
from reprune.pipeline import prune, run
from reprune.pruning import Budget, Method, OneShot, Uniform
from reprune.pruning.probe import Probe
from reprune.pruning.rounds import Round
from reprune.structure.groups import trace
from reprune.training.schedules import Factors

EXAMPLE = torch.zeros(1, 3, 12, 12)


def small_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 5, 3), nn.BatchNorm2d(5),
                        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    trace(net, EXAMPLE)
    return net


def residual_net():
    torch.manual_seed(0)
    return build({"_target_": "reprune.models.resnet", "depth": 8})


def soft(criterion, rate=0.4, **more):
    return Method("soft", criterion=criterion, allocation=Uniform(rate=rate), rounds=OneShot(), silence_every=1, **more)


def silencing(method, example=EXAMPLE):
    """What a run has take part in its sparse training."""
    method.during.view = {"example": example}
    return method.during


def literal_fpgm(w, rate_norm, rate_dist):
    """The card, filter by filter: what the authors' code zeroes of a layer. rate_norm is the fraction kept."""
    rows = [f.flatten().tolist() for f in w]
    norms = [math.sqrt(sum(v * v for v in row)) for row in rows]
    order = sorted(range(len(rows)), key=lambda j: norms[j])
    cut = int(len(rows) * (1 - rate_norm) + 1e-9)
    gone, rest = order[:cut], order[cut:]
    score = {j: sum(math.dist(rows[j], rows[other]) for other in rest) for j in rest}
    return sorted(gone + sorted(rest, key=lambda j: score[j])[:int(len(rows) * rate_dist + 1e-9)])


@pytest.mark.parametrize("rate_norm, rate_dist", [(1, 0.4), (0.7, 0.1), (0.6, 0)])
@pytest.mark.parametrize("seed", range(4))
def test_fpgm_zeroes_what_the_authors_code_zeroes(rate_norm, rate_dist, seed):
    net = small_net(seed)
    net[0].weight.data += 0.3 * torch.randn(10, 1, 1, 1)           # filters of unlike norms, not around zero
    expected = literal_fpgm(net[0].weight.detach(), rate_norm, rate_dist)
    silencing(soft(GeometricMedian(norm_rate=1 - rate_norm), 1 - rate_norm + rate_dist)).silence(net)
    assert (net[0].weight.abs().sum((1, 2, 3)) == 0).nonzero().flatten().tolist() == expected


def test_fpgm_is_not_the_norm():
    """The filter in the middle of others that all point one way is not the smallest."""
    net = small_net()
    net[0].weight.data[:] = 1 + 0.1 * torch.arange(10.).view(-1, 1, 1, 1)
    score = GeometricMedian()([g for g in trace(net, EXAMPLE) if g.name == "0"], Probe(net, EXAMPLE))["0"]
    assert score.argmin() in (4, 5) and score.argmax() in (0, 9)


def test_what_is_silent_at_the_end_goes_even_where_it_is_far_from_the_median():
    net = small_net()
    net[0].weight.data += 5                                       # a zero filter is the farthest of all
    net[0].weight.data[3:5], net[0].bias.data[3:5] = 0, 0
    method = soft(GeometricMedian(), 0.2)
    smaller = prune(method, Round(), Probe(net, EXAMPLE))
    assert len(smaller[0].weight) == 8 and (smaller[0].weight.abs().sum((1, 2, 3)) > 0).all()
    again = Probe(net, EXAMPLE, soft=True)                        # while it trains they compete with the others
    assert GeometricMedian()(again.groups, again)["0"].argmax() in (3, 4)


def trained(method, momentum=0.0):
    """-> the net before training, after an epoch of three steps, and which filters of layer 0 were silent meanwhile."""
    net, callback = small_net().train(), silencing(method)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(0)

    def step():
        optimizer.zero_grad()
        x, y = torch.randn(8, 3, 12, 12, generator=generator), torch.arange(8) % 4
        nn.functional.cross_entropy(net(x), y).backward()
        callback.on_after_backward(None, None)
        optimizer.step()

    step()                                                        # before the first silencing: momentum is there
    callback.silence(net)
    for _ in range(3):
        step()
    return net, ~callback.masks["0"]


def test_silent_filters_of_sfp_come_back_and_those_of_fpgm_wait():
    net, gone = trained(soft(FilterNorm(2)))
    assert gone.sum() == 4 and (net[0].weight[gone].abs().sum((1, 2, 3)) > 0).any()
    net, gone = trained(soft(GeometricMedian(), silence_gradients=True))
    assert gone.sum() == 4 and not net[0].weight[gone].any() and not net[0].bias[gone].any()
    assert (net[0].weight[~gone].abs().sum((1, 2, 3)) > 0).all()
    net, gone = trained(soft(GeometricMedian(), silence_gradients=True), momentum=0.9)
    assert net[0].weight[gone].any()                              # momentum still moves them, as in the authors' code


def silent(net):
    return {name: (m.weight.flatten(1).abs().amax(1) == 0) for name, m in net.named_modules()
            if isinstance(m, nn.Conv2d)}


def test_layers_silence_their_own_filters_until_the_last_time():
    net = residual_net()
    callback = silencing(soft(FilterNorm(2), silence_layers=True), torch.zeros(1, 3, 32, 32))
    norms = {name: m.weight.detach().flatten(1).norm(dim=1) for name, m in net.named_modules()
             if isinstance(m, nn.Conv2d)}
    callback.silence(net)
    for name, gone in silent(net).items():                        # literally, conv by conv
        expected = norms[name].argsort(stable=True)[:int(len(norms[name]) * 0.4)]
        assert sorted(expected.tolist()) == gone.nonzero().flatten().tolist(), name
    assert not torch.equal(silent(net)["conv1"], silent(net)["layer1.0.conv2"])
    net = residual_net()
    callback.silence(net, last=True)
    assert torch.equal(silent(net)["conv1"], silent(net)["layer1.0.conv2"])
    smaller = prune(callback.method, Round(), Probe(net, torch.zeros(1, 3, 32, 32)))
    assert not any(gone.any() for gone in silent(smaller).values())


def test_layers_of_their_own_need_rates():
    method = Method("soft", criterion=FilterNorm(2), allocation=Budget(macs=0.5), rounds=OneShot(), silence_every=1,
                    silence_layers=True)
    with pytest.raises(UserError, match="silence_layers"):
        method.check(Probe(residual_net(), torch.zeros(1, 3, 32, 32)))


@pytest.mark.parametrize("method", ["sfp", "fpgm"])
def test_what_goes_was_silent_before(method, configure, monkeypatch):
    """No filter that says something is lost; with masked gradients more may be silent than the last selection chose."""
    seen = []
    monkeypatch.setattr("reprune.pipeline.prune", lambda m, turn, probe: seen.append(
        (silent(probe.net), silent(prune(m, turn, probe)))) or prune(m, turn, probe))
    run(configure(f"method={method}", "method.silence_layers=true", "recipe.sparse.epochs=2"))
    (before, after), = seen
    assert all(len(after[name]) < len(gone) for name, gone in before.items())
    assert all((~after[name]).sum() == (~gone).sum() for name, gone in before.items())


def test_a_schedule_of_factors_warms_up_and_falls(configure):
    recipe = configure("recipe=he2018", tiny=False).recipe
    optimizer = instantiate(recipe.sparse.optimizer)(nn.Linear(1, 1).parameters())
    scheduler, rates = instantiate(recipe.sparse.scheduler)(optimizer), []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = {0: 0.01, 1: 0.1, 59: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008, 199: 0.0008}
    assert {epoch: rates[epoch] for epoch in expected} == pytest.approx(expected)
    with pytest.raises(UserError, match="milestones"):
        Factors([1], [])


def test_a_norm_rate_is_a_fraction():
    with pytest.raises(UserError, match="norm_rate"):
        GeometricMedian(norm_rate=1.5)
