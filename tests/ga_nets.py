"""Nets, images and quadratic forms for the tests of ga."""

from itertools import combinations
from types import SimpleNamespace

import torch
from torch import Tensor, nn

import reprune
from reprune import models
from reprune.methods.ga import Genetic, OutputError, quadratic
from reprune.pruning.probe import Probe

EXACT = 1e-9                            # relative, in float64


class Fixed:
    """Images in memory, drawn as the datasets draw them; all of them are for training."""

    def __init__(self, x: Tensor, y: Tensor | None = None):
        self.x, self.y = x, torch.zeros(len(x), dtype=torch.long) if y is None else y
        self.parts = SimpleNamespace(train=torch.arange(len(x)))

    def plain(self, batch_size, seed, n=None, device="cpu"):
        rows = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))[:n]
        return list(zip(self.x[rows].split(batch_size), self.y[rows].split(batch_size), strict=True))


def look(net: nn.Module, x: Tensor, y: Tensor | None = None, **options) -> Probe:
    return Probe(net.eval(), x[:1], Fixed(x, y), batch_size=3, **options)


def images(n=8, channels=3, size=9, dtype=torch.float64) -> Tensor:
    return torch.randn(n, channels, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def masks(size: int, n: int, seed: int = 0) -> Tensor:
    """Random sets of removed filters, the single ones among them; never all. bool [n + size, size]"""
    gone = torch.rand(n, size, generator=torch.Generator().manual_seed(seed)) < 0.5
    gone[:, seed % size] = False
    return torch.cat([torch.eye(size, dtype=torch.bool), gone])


def random_q(c: int, seed: int, rank: int | None = None) -> Tensor:
    """A correlated quadratic form, as the inputs of a layer give one."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rank or c + 5, c, generator=generator, dtype=torch.float64) + 0.5
    rows *= torch.rand(c, generator=generator, dtype=torch.float64)
    return rows.T @ rows / len(rows)


def subsets(c: int, removals: int) -> Tensor:
    """Every set of `removals` of c channels, float64 [sets, c], 1 = removed."""
    some = torch.tensor(list(combinations(range(c), removals)))
    return torch.zeros(len(some), c, dtype=torch.float64).scatter_(1, some, 1)


def error_of(keep: Tensor, q: Tensor) -> Tensor:
    return quadratic((~keep).to(q), q)


def search(**options) -> Genetic:
    return Genetic(error=OutputError(), **options)


def reading(reader: nn.Module, inner: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, inner, 3, padding=1), nn.BatchNorm2d(inner), nn.ReLU(), reader,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


READERS = {
    "3x3": lambda: nn.Conv2d(6, 4, 3, bias=False),
    "1x1": lambda: nn.Conv2d(6, 4, 1),
    "zeros around": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "stride": lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1),
    "1x1, stride": lambda: nn.Conv2d(6, 4, 1, stride=2),
    "dilation": lambda: nn.Conv2d(6, 4, 3, dilation=2, padding=1),
    "same": lambda: nn.Conv2d(6, 4, (2, 3), dilation=(1, 2), padding="same"),
    "reflect": lambda: nn.Conv2d(6, 4, 3, padding=(2, 1), padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="circular"),
    "replicate": lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), stride=2, padding_mode="replicate"),
    "rectangular": lambda: nn.Conv2d(6, 4, (1, 5), stride=(3, 2), padding=(0, 2), dilation=(2, 1)),
}


class Branches(nn.Module):
    """Two layers read the stem, one of them twice per filter; the first also reaches the end by itself."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3, stride=2), nn.Conv2d(10, 3, 1)
        self.fc = nn.Linear(7, 3)

    def forward(self, x):
        h = torch.relu(self.stem(x))
        return self.fc(torch.cat([self.a(h).mean((2, 3)), self.b(torch.cat([h, 2 * h], 1)).mean((2, 3))], 1))


def flat() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 3 * 3, 5))


NETS = {
    **{name: (lambda make=make: reading(make()), "0", ["3"]) for name, make in READERS.items()},
    "linear behind a flatten": (flat, "0", ["4"]),
    "linear behind a linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(243, 6), nn.ReLU(), nn.Linear(6, 4)),
                               "1", ["3"]),
    "linear on every position": (lambda: nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4)), "0", ["2"]),
    "two readers": (Branches, "stem", ["a", "b"]),
}


def lively(net: nn.Module, x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):                    # a silent filter emits beta - gamma mu / sigma
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    net.double().train()(x)
    return net.eval()


def outputs(net: nn.Module, readers: list[str], x: Tensor) -> list[Tensor]:
    """What each reader says before its activation, [rows, n]."""
    seen = {}
    hooks = [net.get_submodule(r).register_forward_hook(lambda m, i, out, r=r: seen.update({r: out.clone()}))
             for r in readers]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return [seen[r].movedim(1, -1).flatten(0, -2) if seen[r].dim() == 4 and
            isinstance(net.get_submodule(r), nn.Conv2d) else seen[r].flatten(0, -2) for r in readers]


def brute_force(net: nn.Module, group: str, readers: list[str], x: Tensor, gone: Tensor) -> float:
    """||Z - Z_z||^2 / N, summed over the readers, on the net silenced by surgery."""
    whole, silent = outputs(net, readers, x), outputs(reprune.silence(net, {group: ~gone}), readers, x)
    return sum((a - b).pow(2).sum(1).mean().item() for a, b in zip(whole, silent, strict=True))


def resnet8(size: int = 16, dtype=torch.float32, n: int = 24) -> Probe:
    """Labels are what the net says, so that its filters matter."""
    torch.manual_seed(0)
    net = models.build({"_target_": "reprune.models.resnet", "depth": 8, "in_channels": 1}).to(dtype).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = images(n, 1, size, dtype)
    with torch.no_grad():
        net(x)
        y = net.eval()(x).argmax(1)
    return look(net, x, y, seed=3)


def inner(probe: Probe) -> list:
    return [g for g in probe.groups if not g.coupled]
