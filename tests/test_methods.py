"""What every criterion must satisfy, whatever its formula."""

from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from reprune.errors import UserError
from reprune.methods.loss_increase import LossIncrease
from reprune.models import build
from reprune.pruning.probe import Probe
from reprune.structure.groups import trace
from reprune.structure.surgery import remove, zero_filters

METHODS = ["random", "l1", "hgsr", "sfp", "slimming", "l1std", "ga"]


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5),
                        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    for norm in (net[1], net[4]):
        nn.init.uniform_(norm.weight, -1, 1)
        nn.init.uniform_(norm.bias, -1, 1)
    return net.eval()


def look(net: nn.Module, example: torch.Tensor) -> Probe:
    """With eight random images, for criteria that look at some; of a contrast that wakes every filter."""
    x = 5 * torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    data = SimpleNamespace(parts=SimpleNamespace(train=range(8)), plain=lambda *_: [(x, torch.zeros(8).long())])
    return Probe(net, example, data)


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


@pytest.mark.parametrize("method", [*(m for m in METHODS if m != "random"), "loss_increase"])
def test_a_score_that_is_no_number_names_the_group_and_the_criterion(method, configure):
    net = small_net()
    for tensor in (net[0].weight, net[1].weight, net[3].weight):
        nn.init.constant_(tensor, float("nan"))
    probe = look(net, torch.zeros(1, 3, 12, 12))
    score = LossIncrease(n_samples=8) if method == "loss_increase" else criterion(method, configure)
    with pytest.raises(UserError, match=rf"^{type(score).__name__} scores 6 of the 6 filters of 0 as NaN: [^\n]*$"):
        score(probe.groups, probe)


@pytest.mark.parametrize("method", ["l1", "hgsr", "sfp", "l1std", "ga"])
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
