"""Lets the masks of a method act while a stage trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from reprune.pruning.masks import WeightMask
from reprune.pruning.probe import Probe

if TYPE_CHECKING:
    from reprune.training.classifier import Classifier


def masked(mask: WeightMask, probe: Probe) -> Masking:
    """For the training of the probe's net, whose masks are chosen by that, and applied."""
    mask.start(probe.net, probe)
    return Masking(mask)


class Masking(pl.Callback):
    """Before and after every step of the optimiser. The masks have been chosen by then."""

    def __init__(self, mask: WeightMask):
        self.mask = mask

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        self.weights = self.mask.weights(module.net)
        self.mask.to(module.device)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Classifier,
                                 optimizer: torch.optim.Optimizer) -> None:
        self.mask.before_step(self.weights)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Classifier, *_: Any) -> None:
        steps = trainer.max_epochs * trainer.num_training_batches
        self.mask.after_step(self.weights, trainer.optimizers[0], trainer.global_step, steps)

    def state_dict(self) -> dict:
        return self.mask.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.mask.load_state_dict(state)
