"""netadjust is its formulas: against nets of other widths and channels dropped by hand; a plan is a wider net's."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ga_nets import images, lively, reading
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.methods import netadjust
from reprune.methods.netadjust import Adjust, ChannelDropout, Widths
from reprune.models import build
from reprune.pruning.probe import Probe

X, Y = images(6), torch.tensor([0, 1, 2, 0, 1, 2])


def look(net: nn.Module, x=X, y=Y, **options) -> Probe:
    held_out = SimpleNamespace(name="six", parts=SimpleNamespace(val=range(len(x))), val=lambda *_: [(x, y)])
    return Probe(net.eval(), x[:1], held_out, seed=5, **options)


def resnet8(**options) -> nn.Module:
    torch.manual_seed(0)
    return build({"_target_": "reprune.models.resnet", "name": "resnet8", "depth": 8, "classes": 10, "in_channels": 3,
                  "weights": None, **options})


def of_resnet8(net: nn.Module | None = None, **options) -> Probe:
    return look(net or resnet8(), torch.randn(6, 3, 8, 8), Y, **options)


def test_utilization_is_the_loss_with_channels_dropped_by_hand_less_that_without():
    net = lively(reading(nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4))), X)
    probe, some = look(net), Adjust(times=3, base_drop=0.4)
    found = some.utilization(probe.groups, probe)

    def loss(at: int = 9, p: float = 0, generator=None) -> float:
        h = X
        for number, part in enumerate([net[0], net[1], net[2], net[3][0], net[3][1], net[4], net[5], net[6]]):
            h = part(h)
            if number == at:                                      # behind batch norm
                kept = torch.rand(h.shape[:2], generator=generator) >= p
                h = h * kept[..., None, None] / (1 - p)
        return float(F.cross_entropy(h, Y).detach())

    draws, p = probe.generator(), some.chances(probe.groups, probe)
    expected = [sum(loss(at, q, draws) - loss() for _ in range(3)) / 3 for at, q in zip((1, 4), p, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5) and min(map(abs, expected)) > 1e-3
    assert torch.equal(net(X), net(X)) and not any(m._forward_hooks for m in net.modules())


def test_every_layer_loses_the_same_macs():
    def macs(first: int, second: int) -> int:
        net = nn.Sequential(nn.Conv2d(3, first, 3, padding=1), nn.Conv2d(first, second, 3),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 3))
        return reprune.cost(net, torch.zeros(1, 3, 9, 9)).macs

    net = reading(nn.Conv2d(6, 4, 3))
    probe = look(net.double())
    p = Adjust(base_drop=0.1).chances(probe.groups, probe)
    share = [6 * (macs(7, 4) - macs(6, 4)), 4 * (macs(6, 5) - macs(6, 4))]        # c dF/dc: F is linear in each
    assert p == pytest.approx([0.1 * sum(share) / 2 / s for s in share]) and p[0] != pytest.approx(p[1])


def test_layers_grow_and_shrink_by_their_rank_and_the_macs_stay(monkeypatch):
    probe = of_resnet8()
    some = Adjust(update_num=2.6, update_decay=1, alpha=0.5, alpha_decay=0.2)
    groups = some.candidates(probe)
    monkeypatch.setattr(Adjust, "utilization", lambda *_: torch.arange(float(len(groups))))
    scores = {g.name: torch.ones(g.size) for g in groups}
    for steps in ([0.5, 0.3, 0.1], [0.5, 0.3], [0.5]):            # 2.6, 1.6, 0.6 layers; at least one
        widths = [int(m.sum()) for m in some(scores, probe).values()]
        change = [-s for s in steps] + [0] * (len(groups) - 2 * len(steps)) + steps[::-1]
        scales = [w / (g.size * (1 + c)) for w, g, c in zip(widths, groups, change, strict=True)]
        assert max(scales) - min(scales) < 0.1                    # one for all, but for rounding
        gone = torch.tensor([dict(zip((g.name for g in groups), widths, strict=True)).get(g.name, g.size) - g.size
                             for g in probe.groups])
        assert probe.costs.after(-gone).macs == pytest.approx(probe.original.cost.macs, rel=0.02)   # so few
    assert probe.carried["netadjust"] == 3
    with pytest.raises(UserError, match="^allocation: times [^\n]*$"):
        Adjust(alpha=0)


def test_a_plan_is_carried_out_on_a_wider_net(tmp_path):
    probe = of_resnet8()
    keep = {g.name: torch.arange(3 * g.size) < g.size * (2 - at % 2 * 1.5)
            for at, g in enumerate(g for g in probe.groups if not g.coupled)}
    state = torch.get_rng_state()
    net = Widths()(keep, probe)
    assert torch.equal(state, torch.get_rng_state())
    widths = {g.name: g.size for g in reprune.trace(net, probe.example)}
    assert widths == {g.name: int(keep[g.name].sum()) if g.name in keep else g.size for g in probe.groups}
    gone = torch.tensor([g.size - widths[g.name] for g in probe.groups])
    assert reprune.cost(net, probe.example).macs == probe.costs.after(gone).macs > probe.original.cost.macs
    again = of_resnet8(net, original=probe.original)                    # and on what it has made
    assert reprune.cost(Widths()(keep, again), probe.example) == reprune.cost(net, probe.example)
    reprune.save(net.eval(), tmp_path / "net.safetensors")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(reprune.load(tmp_path / "net.safetensors").eval()(x), net(x))
    other = look(reading(nn.Conv2d(6, 4, 3)).double())
    with pytest.raises(UserError, match="^netadjust widens layers, and Sequential has no option [^\n]*$"):
        Widths().check(other.groups, other)


@pytest.mark.parametrize("deeper", [True, False])
def test_channels_are_dropped_more_in_later_epochs_and_deeper_layers(deeper, monkeypatch):
    net, told = reprune.remove(of_resnet8().net, {"layer1.0.conv1": torch.arange(16) > 0}), []
    of = netadjust.dropped
    monkeypatch.setattr(netadjust, "dropped", lambda index, p, *more: told.append(p) or of(index, p, *more))
    dropout, x = ChannelDropout(0.4, deeper=deeper), torch.randn(2, 3, 8, 8)
    for share in (0.5, 1.0):
        told.clear()
        dropout.before_epoch(net, share)
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        rises = {m: at / len(norms) if deeper else 1 for at, m in enumerate(norms, 1)}
        assert told == pytest.approx([0.4 * share * rises[m] for m in norms for _ in m._forward_hooks])
        assert sum(len(m._forward_hooks) for m in net.modules()) == len(told) > len(norms)      # none of the last epoch
    assert not torch.equal(net.train()(x), net(x)) and torch.equal(net.eval()(x), net(x))
