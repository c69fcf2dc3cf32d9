"""Moments of what a layer reads now and what it said in another net: all that least squares needs of N rows."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reprune.methods.loss_increase import lift
from reprune.methods.output_error import Reader, weights
from reprune.pruning.probe import Probe
from reprune.structure.check import net_graph
from reprune.structure.groups import Slice, kept, traced
from reprune.structure.notes import notes


class Moments(Reader):
    """[X 1]^T [X 1] and [X 1]^T Y of all rows, and some of the rows themselves.

    images    that it will see
    most      rows to keep, and at most a twentieth of all
    left      of the other net's outputs, those that this layer still has, bool
    """

    def __init__(self, module: nn.Module, where: Slice, points: int, generator: torch.Generator, images: int, most: int,
                 left: Tensor):
        super().__init__(module, where, points, generator)
        self.images, self.most, self.left, self.cross = images, most, left, 0.0
        self.waiting: deque[tuple[Tensor, Tensor | None]] = deque()       # Y, and at which positions
        self.drawn: Tensor | None = None                          # numbers of the rows to keep
        self.few: list[tuple[Tensor, Tensor]] = []

    def aim(self, module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        """Of the other net's layer."""
        positions = 1 if isinstance(module, nn.Linear) else out[0, 0].numel()
        at = self.draw(len(out), positions) if self.points < positions else None
        self.waiting.append((self.outputs(module, out, at)[:, self.left.to(out.device)], at))

    def __call__(self, module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        y, at = self.waiting.popleft()
        x = self.inputs(inputs[0], at)                            # [N, c k]
        if self.where.index.numel() < module.weight.shape[1]:     # reads others beside
            y = y - (self.outputs(module, out, at) - x @ weights(module, self.where).flatten(1).T)
        self.take_both(x.double(), y.double(), len(out))

    def outputs(self, module: nn.Module, out: Tensor, at: Tensor | None) -> Tensor:
        """Without the bias, at some positions. [B, n, ...] -> [N, n]"""
        if not isinstance(module, nn.Linear):
            out = out.flatten(2)                                  # [B, n, positions]
            if at is not None:
                out = out.gather(2, at.to(out.device).unsqueeze(1).expand(-1, out.shape[1], -1))
            out = out.transpose(1, 2)
        return out.flatten(0, -2) - (0 if module.bias is None else module.bias)

    def take_both(self, x: Tensor, y: Tensor, images: int) -> None:
        if self.drawn is None:
            total = self.images * (len(x) // images)
            self.drawn = torch.randperm(total, generator=self.generator)[: max(1, min(self.most, total // 20))]
        here = self.drawn[(self.drawn >= self.rows) & (self.drawn < self.rows + len(x))].to(x.device) - self.rows
        self.few.append((x[here].cpu(), y[here].cpu()))
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        self.gram, self.cross, self.rows = self.gram + x.T @ x, self.cross + x.T @ y, self.rows + len(x)

    def some(self) -> tuple[Tensor, Tensor]:
        """Random rows of X and Y"""
        x, y = zip(*self.few, strict=True)
        return torch.cat(x), torch.cat(y)

    def sums(self) -> tuple[Tensor, Tensor]:
        return self.gram.cpu(), self.cross.cpu()

    def weights(self) -> Tensor:
        return weights(self.module, self.where).cpu().double()


def survivors(probe: Probe, then: nn.Module, module: str) -> Tensor:
    """Which outputs of a layer of an earlier net are left in the probe's. -> bool [outputs]"""
    plan: dict[str, Tensor] = {}
    for step in notes(probe.net).get("history", [])[len(notes(then).get("history", [])):]:
        for name, keep in step.items():
            plan[name] = lift(plan[name], keep) if name in plan else keep
    return kept(traced(then).axes[module, "out"], traced(then).keep(plan))


def bias_place(net: nn.Module, module: str) -> tuple[str, int] | None:
    """Where a number goes that is to be added to a layer's outputs, and its sign: to the bias, or from the mean of
    batch norm right behind it. None where there is neither. net: traced"""
    if net.get_submodule(module).bias is not None:
        return f"{module}.bias", 1
    for node in net_graph(net).graph.nodes:
        if node.op == "call_module" and node.target == module:
            for user in node.users:
                norm = net.get_submodule(user.target) if user.op == "call_module" else None
                if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                    return f"{user.target}.running_mean", -1
    return None


def tensor_at(net: nn.Module, name: str) -> Tensor:
    """A weight or a buffer by its name: layer1.0.bn1.running_mean"""
    module, _, tensor = name.rpartition(".")
    return getattr(net.get_submodule(module), tensor)
