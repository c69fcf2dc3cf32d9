"""Soft pruning: filters are silenced while the net trains, and may come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from reprune.pruning.during import During
from reprune.pruning.probe import Probe
from reprune.structure.groups import Plan
from reprune.structure.surgery import filter_masks, layer_masks, zero_filters

if TYPE_CHECKING:
    from reprune.pruning.sockets import Method


class PruningCallback(During):
    """Silences filters on the method's schedule: their weights are set to zero in place, shapes stay, and they go on
    training, so a filter can come back (He et al. 2018), or have no gradient until the next time (He et al. 2019).
    Before training and after every `silence_every`-th epoch.
    """

    def __init__(self, method: Method):
        super().__init__()
        self.method = method
        self.plan: Plan = {}                                      # of the last time
        self.masks: dict[str, Tensor] = {}                        # layer -> which filters stay [filters]
        self.frozen: list[tuple[nn.Parameter, Tensor]] = []       # with gradients to mask

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.global_step == 0:                              # not where a stage goes on
            self.silence(module.net)
        else:
            self.freeze(module.net)

    def on_after_backward(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        found = [(tensor.grad, keep) for tensor, keep in self.frozen if tensor.grad is not None]
        if found:
            torch._foreach_mul_([grad for grad, _ in found], [keep for _, keep in found])

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        done = trainer.current_epoch + 1
        if done % self.method.silence_every == 0 or done == trainer.max_epochs:
            self.silence(module.net, last=done == trainer.max_epochs)

    def silence(self, net: nn.Module, last: bool = False) -> None:
        """Coupled layers have a mask of their own, where the method says so, but the last time: then filters go."""
        alone = self.method.silence_layers and not last
        probe = Probe(net, **self.view, soft=True)
        probe = probe.by_layer() if alone else probe
        self.plan = self.method.allocation(self.method.criterion(probe.groups, probe), probe)
        self.masks = self.plan if alone else layer_masks(net, self.plan)
        zero_filters(net, self.masks)
        self.freeze(net)

    def freeze(self, net: nn.Module) -> None:
        self.frozen = filter_masks(net, self.masks) if self.method.silence_gradients else []

    def state_dict(self) -> dict:
        return {"masks": self.masks} if self.method.silence_gradients else {}

    def load_state_dict(self, state: dict) -> None:
        self.masks = state["masks"]
