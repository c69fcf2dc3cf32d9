"""OrthoReg: penalty and importance read literally, rounds that take what the paper's formula says."""

import pytest
import torch
from hydra.utils import instantiate
from test_hrank import look
from torch import nn

from reprune.errors import UserError
from reprune.methods.orthoreg import Importance, Iterative, Ortho
from reprune.models import build
from reprune.pipeline import run
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Step


def literal(w, transposed=False):
    """sum |W W^T - I| with loops."""
    rows = (w.T if transposed else w).tolist()
    return sum(abs(sum(a * b for a, b in zip(p, q, strict=True)) - (i == j))
               for i, p in enumerate(rows) for j, q in enumerate(rows))


def step_of(net, epoch=0):
    return Step(net, torch.zeros(1), torch.zeros(1), torch.zeros(1, 2), epoch)


def test_the_penalty_of_a_vgg_has_biases_and_its_first_conv_on_its_side():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 2), nn.ReLU(), nn.Conv2d(5, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1, bias=False))
    flat = [torch.cat([m.weight.flatten(1), m.bias[:, None]], 1) if m.bias is not None else m.weight.flatten(1)
            for m in net if isinstance(m, nn.Conv2d)]
    r = [5 ** 0.5, 3 ** 0.5, 4 ** 0.5]
    expected = sum(weight / sum(r) * literal(w, i == 0) for i, (w, weight) in enumerate(zip(flat, r, strict=True)))
    assert Ortho(weight=0.1)(step_of(net)).item() == pytest.approx(0.1 * expected, rel=1e-5)
    assert expected != pytest.approx(sum(w / sum(r) * literal(f) for f, w in zip(flat, r, strict=True)))


def test_the_penalty_of_a_resnet_weights_shortcuts_as_the_first_conv_of_their_block():
    net = build({"_target_": "reprune.models.resnet_b", "depth": 8})
    layers = Ortho(weighting="smaller").layers(net)
    sizes = {name: min(w.shape) ** 0.5 for name, (w, _, _) in layers.items()}
    sizes["layer2.0.downsample.0"], sizes["layer3.0.downsample.0"] = sizes["layer2.0.conv1"], sizes["layer3.0.conv1"]
    assert {name: share for name, (_, _, share) in layers.items()} == pytest.approx(
        {name: r / sum(sizes.values()) for name, r in sizes.items()})
    assert {name for name, (_, side, _) in layers.items() if side} == {"conv1", "layer2.0.downsample.0",
                                                                      "layer3.0.downsample.0"}
    assert all(side for _, side, _ in Ortho(transposed="all").layers(net).values())


def test_orthonormal_filters_cost_nothing_and_there_is_no_penalty_before_its_epoch():
    net = nn.Sequential(nn.Conv2d(1, 4, 2, bias=False), nn.Conv2d(4, 3, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4).view(4, 1, 2, 2))
        net[1].weight.copy_(torch.eye(4)[:3].view(3, 4, 1, 1))
        assert Ortho()(step_of(net)) == 0
        net[1].weight.mul_(2)
        assert Ortho()(step_of(net)) > 0 == Ortho(from_epoch=3)(step_of(net, 2))
        assert Ortho(from_epoch=3)(step_of(net, 3)) == Ortho()(step_of(net))


def test_the_importance_is_of_the_mean_gradient_and_squared_at_the_end():
    """Literally, one image at a time: the sum over a filter comes before the square, and the mean over images too."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Dropout(), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(6, 4))
    x = torch.randn(7, 3, 8, 8)
    probe = look(net, x)                                          # in batches of 3, 3 and 1
    conv, total = net[0], torch.zeros(6)
    for image in x:
        net.zero_grad()
        nn.functional.cross_entropy(net(image[None]), torch.tensor([0])).backward()
        for j in range(6):
            total[j] += ((conv.weight[j] * conv.weight.grad[j]).sum() + conv.bias[j] * conv.bias.grad[j]).item() / 7
    net.zero_grad()
    torch.testing.assert_close(Importance()(probe.groups, probe)["0"], total ** 2, rtol=1e-4, atol=1e-12)
    assert all(p.grad is None for p in net.parameters())


def test_rounds_remove_what_the_formula_says_of_what_is_left():
    p, n, kept = 0.75, 4, 1.0
    for i, turn in enumerate(Iterative(n, p)(dict), 1):
        kept *= 1 - p / (i * p + n * (1 - p))
        assert 1 - p * turn.share == pytest.approx(kept)
    assert turn.last and kept == pytest.approx(1 - p)


def test_at_least_a_twentieth_of_a_layer_stays(configure):
    method = instantiate(configure("method=orthoreg", "method.allocation.rate=0.9").method)
    probe = Probe(build({"_target_": "reprune.models.vgg", "depth": 13}), torch.zeros(1, 3, 32, 32))
    scores = {g.name: torch.zeros(g.size) + (g.name == "features.0") for g in probe.groups}
    plan = method.allocation(scores, probe)
    assert min(int(mask.sum()) / len(mask) for mask in plan.values()) >= 0.05


def test_it_runs_in_rounds_with_the_penalty_between_them(configure):
    record = run(configure("method=orthoreg", "method/rounds=iterative", "method.rounds.n=2",
                           "method.between_penalties.ortho.from_epoch=0"))
    assert record["epochs"] == {"baseline": 1, "sparse": 1, "recover": 2}
    assert "penalty/ortho" in record["curves"]["recover-0"] and "penalty/ortho" not in record["curves"]["recover"]


def test_bad_options_and_a_net_without_convs_are_refused():
    for options in ({"weight": -1}, {"weighting": "none"}, {"transposed": "none"}):
        with pytest.raises(UserError, match=next(iter(options))):
            Ortho(**options)
    probe = Probe(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)), torch.zeros(1, 1, 2, 2))
    with pytest.raises(UserError, match="no nn.Conv2d"):
        Ortho().check(probe.groups, probe)
