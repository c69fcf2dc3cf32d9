"""What a method does while the net trains sparse: one of Lightning's callbacks, with what it trains beside the net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from reprune.structure.groups import FilterGroup

if TYPE_CHECKING:
    from reprune.pruning.probe import Probe
    from reprune.pruning.sockets import Penalty


class During(pl.Callback):
    """Takes part in sparse training, which otherwise goes as the recipe says. As it is, it does nothing.

    A training that was cut off begins with a new one, whose `start` has seen the net before the first step; then what
    it had by the checkpoint is loaded: `extra`, and what state_dict() holds.
    """

    needs_teacher = False               # True: its penalties see the unpruned net
    view: Mapping[str, Any] = {}        # what a `Probe` has beside the net

    def __init__(self) -> None:
        self.extra = nn.ModuleDict()                              # trained and saved beside the net
        self.penalties: dict[str, Penalty] = {}                   # beside those of the method
        self.hooks: list[Any] = []

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        """Raises UserError where it cannot serve this net; before anything trains. groups: what may be pruned."""

    def start(self, net: nn.Module) -> None:
        """Puts into the net what it trains with: hooks, mostly, that `finish` takes out again."""

    def untrained(self, net: nn.Module) -> None:
        """What it does to a net where the recipe trains for no epoch."""

    def parameters(self, net: nn.Module) -> Iterable[Tensor] | list[dict[str, Any]]:
        """What the recipe's optimiser moves; in groups, where they differ in its options."""
        return [*net.parameters(), *self.extra.parameters()]

    def finish(self, net: nn.Module) -> dict[str, Any]:
        """After the last epoch: the net as rounds are to find it. -> plain data for criteria (`Probe.carried`)"""
        return {}


class Gated(During):
    """With a module on the outputs of some layers."""

    def gate(self, net: nn.Module, layer: str, module: nn.Module) -> None:
        """From now on the outputs of the layer go through it, in the layer's mode."""
        conv = net.get_submodule(layer)
        module.to(conv.weight.device)
        self.extra[key(layer)] = module
        self.hooks.append(conv.register_forward_hook(_Through(module)))

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        module.launch_each()                                      # hooks draw random numbers, or follow the epoch

    def finish(self, net: nn.Module) -> dict[str, Any]:
        for hook in self.hooks:
            hook.remove()
        return {"learned": {name: scores.tolist() for name, scores in self.learned(net).items()}}

    def learned(self, net: nn.Module) -> dict[str, Tensor]:
        """Group -> scores, larger = keep; for the criterion `Learned`."""
        raise NotImplementedError


class _Through:
    """A hook that processes which train together can be sent."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, layer: nn.Module, _: Any, out: Tensor) -> Tensor:
        return self.module.train(layer.training)(out)


def key(layer: str) -> str:
    """A layer's name where dots have a meaning."""
    return layer.replace(".", "/")


def deciding(group: FilterGroup, net: nn.Module) -> dict[str, Tensor]:
    """The convs that decide about a group: those that make its filters, but the stem and shortcuts, which add to what
    others make. -> layer: which of its outputs each filter is [size]"""
    convs = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    return {s.module: s.index[:, 0] for s in group.producers(net)
            if s.module in convs[1:] and not any(word in s.module for word in ("downsample", "shortcut"))}


def mean(scores: list[Tensor]) -> Tensor:
    """Of the layers of a group. each [size] -> [size]

    >>> mean([torch.tensor([0., 1.]), torch.tensor([1., 1.])])
    tensor([0.5000, 1.0000])
    """
    return torch.stack(scores).mean(0)
