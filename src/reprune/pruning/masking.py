"""Lets the masks of a method act while the net trains sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import nn

from reprune.pruning.during import During
from reprune.pruning.probe import Probe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reprune.pruning.masks import WeightMask
    from reprune.structure.groups import FilterGroup


class Masking(During):
    """Before and after every step of the optimiser. The masks have been chosen by then."""

    def __init__(self, mask: WeightMask):
        super().__init__()
        self.mask = mask

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        self.mask.check(probe)

    def start(self, net: nn.Module) -> None:
        self.mask.start(net, Probe(net, **self.view))

    untrained = start

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.weights = self.mask.weights(module.net)
        self.mask.to(module.device)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.mask.before_step(self.weights)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        steps = trainer.max_epochs * trainer.num_training_batches
        self.mask.after_step(self.weights, trainer.optimizers[0], trainer.global_step, steps)

    def state_dict(self) -> dict:
        return self.mask.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.mask.load_state_dict(state)
