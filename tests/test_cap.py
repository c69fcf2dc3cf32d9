"""cap is its equations: against inverses computed anew in every step, and least squares on the inputs themselves."""

import pytest
import torch
from ga_nets import images, lively, look, reading, resnet8
from hydra.utils import instantiate
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.methods.cap import Compensate, Ranking, Selection, compensate, forward_order
from reprune.pipeline import prune
from reprune.pruning import Bisection
from reprune.pruning.rounds import Round


def problem(seed: int, c: int = 9, k: int = 2, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs: Sigma [c k, c k] and W [n, c k]"""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(60, c * k, generator=draw, dtype=torch.float64) @ torch.randn(c * k, c * k, generator=draw).double()
    x -= x.mean(0)
    return x.T @ x / 60, torch.randn(n, c * k, generator=draw).double()


def columns(channels: list[int], k: int) -> list[int]:
    return [k * c + j for c in channels for j in range(k)]


def loss(sigma: torch.Tensor, w: torch.Tensor, s: list[int]) -> float:
    """Eq. 2 with the inverse itself."""
    explained = w @ sigma[:, s] @ sigma[s][:, s].inverse() @ sigma[s] @ w.T
    return float(torch.trace(w @ sigma @ w.T) - torch.trace(explained))


def score(sigma: torch.Tensor, w: torch.Tensor, s: list[int], t: list[int]) -> float:
    """Eq. 3 with the inverse itself."""
    between = sigma[:, s] @ sigma[s][:, s].inverse() @ sigma[s][:, t]
    a = torch.linalg.cholesky(sigma[t][:, t] - between[t]).inverse()
    return float(((w @ (sigma[:, t] - between) @ a.T) ** 2).sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_order_is_that_of_inverses_computed_anew(seed):
    (sigma, w), k, order = problem(seed), 2, []
    found = Selection(sigma, w, 9)
    while len(order) < 9:
        rest = [t for t in range(9) if t not in order]
        literal = {t: score(sigma, w, columns(order, k), columns([t], k)) for t in rest}
        assert found.gains()[rest].tolist() == pytest.approx(list(literal.values()), rel=1e-8)
        for t in rest:                                            # and that is what the compensated loss loses
            less = loss(sigma, w, columns(order, k)) - loss(sigma, w, columns([*order, t], k))
            assert literal[t] == pytest.approx(less, rel=1e-8, abs=1e-8)
        order.append(max(literal, key=literal.get))
        found.add(order[-1])
    assert forward_order([Selection(sigma, w, 9)]).tolist() == order
    alone = [float(score(sigma, w, [], columns([t], k))) for t in range(9)]
    assert order != sorted(range(9), key=lambda t: -alone[t])     # not by what each explains alone


def test_channels_without_a_factor_come_last_in_their_order():
    sigma, w = torch.eye(4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64)
    sigma[0, 0] = sigma[2, 2] = -1
    assert forward_order([Selection(sigma, w * torch.arange(4), 4)]).tolist() == [3, 1, 0, 2]


@pytest.mark.parametrize("rescale", [False, True])
def test_compensation_is_least_squares_on_the_inputs(rescale):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=draw, dtype=torch.float64) @ torch.randn(6, 6, generator=draw).double() + 2
    w, s = torch.randn(3, 6, generator=draw).double(), torch.tensor([0, 2, 3])
    mean, y = x.mean(0), x @ w.T
    new, shift = compensate((x - mean).T @ (x - mean) / 50, mean, w, s, rescale)
    fitted = torch.linalg.lstsq(torch.cat([x[:, s], torch.ones(50, 1).double()], 1), y).solution
    if rescale:
        assert torch.allclose((x[:, s] @ new.T).var(0), y.var(0))                # the variance that each output had
        assert torch.allclose(new / new.norm(dim=1, keepdim=True), fitted[:-1].T / fitted[:-1].norm(dim=0)[:, None])
    else:
        assert torch.allclose(new, fitted[:-1].T) and torch.allclose(shift, fitted[-1])
    assert torch.allclose((x[:, s] @ new.T + shift).mean(0), y.mean(0))


@pytest.mark.parametrize("reader", [lambda: nn.Conv2d(6, 4, 3), lambda: nn.Sequential(
    nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)), lambda: nn.Conv2d(6, 4, 3, bias=False)])
def test_what_a_kept_twin_can_make_up_for_changes_nothing(reader):
    """Filter 1 is 2 x filter 0 + 1, behind its activation: the shift goes to a bias or into batch norm."""
    x = images()
    net = lively(reading(reader()), x)
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias, net[1].running_mean, net[1].running_var, net[1].weight):
            tensor[1] = tensor[0]
        net[1].bias[0], net[1].weight[1] = 9, 2 * net[1].weight[0]              # never below zero
        shifts = not (isinstance(net[3], nn.Conv2d) and net[3].bias is None)
        net[1].bias[1] = 18 + shifts
    probe, error = look(net, x), Ranking(share=1)
    scores = error(probe.groups, probe)["0"]
    assert min(scores[0], scores[1]) == 0                         # one of the twins explains nothing more
    with torch.no_grad():
        before, smaller = net(x), reprune.remove(net, {"0": torch.tensor([True, False, True, True, True, True])})
        assert not torch.allclose(smaller(x), before, rtol=1e-3)
        assert torch.allclose(Compensate(error=error)(smaller, probe)(x), before, rtol=1e-5)


def test_nothing_is_measured_again_once_a_layer_is_pruned(configure):
    """The compensation of a layer does not depend on what else goes; outputs that go are left out."""
    method = instantiate(configure("method=cap", "method/allocation=uniform", "method.criterion.share=1").method)
    probe = resnet8(dtype=torch.float64)
    both = prune(method, Round(counts={"layer1.0.conv1": 8, "layer2.0.conv1": 8}), probe)
    alone = prune(method, Round(counts={"layer1.0.conv1": 8}), probe)
    assert torch.equal(both.layer1[0].conv2.weight, alone.layer1[0].conv2.weight)
    assert torch.equal(both.layer1[0].bn2.running_mean, alone.layer1[0].bn2.running_mean)
    assert not torch.equal(alone.layer1[0].bn2.running_mean, probe.net.layer1[0].bn2.running_mean)


def test_a_covariance_without_a_factor_is_one_line():
    probe = resnet8(dtype=torch.float64)
    error = Ranking(share=1, eps=0)
    (where, sigma, mu), = error.measure(probe.groups[1:2], probe)[probe.groups[1].name]
    with pytest.raises(UserError, match="^cap: the covariance of what [^\n]*method.criterion.eps[^\n]*$"):
        Compensate(error).refit(where, -sigma, mu, torch.ones(16, dtype=torch.bool), probe.net)


def test_the_step_constraint_falls_with_each_layer_and_earlier_layers_stay_cut():
    """Two layers of 8; a filter of the first costs 1 point, of the second 2. Of 12 points 6 may go by the first."""
    probe = look(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 25, 2)), images(
        dtype=torch.float32))
    tried = []

    def accuracy(plan, repair=()):
        gone = [int((~plan[name]).sum()) if name in plan else 0 for name in ("0", "1")]
        tried.append(gone)
        return 90 - gone[0] - 2 * gone[1]

    probe.accuracy = accuracy
    scores = {"0": torch.arange(8.), "1": torch.arange(8.).flip(0)}
    plan = Bisection(trials=8, max_sparsity=0.95, drop=12)(scores, probe)
    assert plan["0"].tolist() == [False] * 6 + [True] * 2 and plan["1"].tolist() == [True] * 5 + [False] * 3
    assert tried[0] == [0, 0] and len(tried) == 1 + 2 * 8
    assert [gone[0] for gone in tried[9:]] == [6] * 8             # frozen


def test_it_is_judged_by_held_out_images_and_its_own_compensation(configure, monkeypatch):
    cfg = configure("method=cap", "dataset.val_size=0")
    method, data = instantiate(cfg.method), instantiate(cfg.dataset)
    probe = resnet8()
    probe.data = data
    with pytest.raises(UserError, match="^allocation: dataset digits holds no images out[^\n]*$"):
        method.allocation.check(probe.groups, probe)
    assert [type(each) for each in method.allocation.repair.values()] == [Compensate]
    assert not instantiate(configure("method=l1", "method/allocation=bisection").method).allocation.repair
