"""What every dataset offers: four loaders over three disjoint parts.

    train   what the net learns from                          shuffled, augmented, new order every epoch
    val     held out of the published training set            selection, search, early stopping
    test    the published test set                            measured once, at the end

A loader yields (x, y): x float32 [B, C, size, size], normalised, channels_last strides; y int64 [B].
"""

from abc import ABC, abstractmethod

import torch

from reprune.data.sampler import EpochSampler, generator
from reprune.data.split import Parts
from reprune.errors import UserError


class Data(ABC):
    """One dataset. mean, std: per channel, on the 0..1 scale; parts: row numbers of train, val and test."""

    def __init__(self, name: str, channels: int, classes: int, size: int, mean: tuple, std: tuple, parts: Parts):
        self.name, self.channels, self.classes, self.size = name, channels, classes, size
        self.mean, self.std, self.parts = mean, std, parts

    def train(self, batch_size: int, seed: int, device="cpu", share: tuple[int, int] = (0, 1)):
        """Shuffled and augmented; (seed, epoch) determine every batch. `loader.sampler.set_epoch(e)` chooses the epoch.

        The last, smaller batch is kept, but not when it holds one image: batch statistics of one sample mean nothing.
        share: (rank, processes) where several processes train together, each with its part of every batch.
        """
        if batch_size % share[1]:
            raise UserError(f"recipe.batch_size={batch_size} cannot be shared by {share[1]} devices: use a multiple of "
                            f"{share[1]}, or another trainer.devices")
        sampler = EpochSampler(len(self.parts.train), seed, self._batch(batch_size), share)
        if len(sampler) == 0:
            raise UserError(f"dataset {self.name}: nothing to train on; raise dataset.limit or lower dataset.val_size")
        return self._loader("train", self.parts.train, sampler.batch_size, device, sampler)

    def plain(self, batch_size: int, seed: int, n: int | None = None, device="cpu"):
        """n training images (all of them by default), drawn without replacement, not augmented: for calibration."""
        total = len(self.parts.train)
        n = total if n is None else n
        if not 0 < n <= total:
            raise UserError(f"dataset {self.name}: cannot draw {n} images from the {total} it trains on")
        rows = self.parts.train[torch.randperm(total, generator=generator(seed))[:n]]
        return self._loader("train", rows, self._batch(batch_size), device)

    def val(self, batch_size: int, device="cpu"):
        """The held-out images, not augmented, in a fixed order."""
        if len(self.parts.val) == 0:
            raise UserError(f"dataset {self.name}: selection needs held-out data; set dataset.val_size (now 0)")
        return self._loader("train", self.parts.val, self._batch(batch_size), device)

    def test(self, batch_size: int, device="cpu"):
        """The test images, not augmented, in a fixed order."""
        return self._loader("test", self.parts.test, self._batch(batch_size), device)

    @abstractmethod
    def _loader(self, source: str, rows: torch.Tensor, batch_size: int, device, sampler: EpochSampler | None = None):
        """Loader over `rows` of source "train" or "test"; augmented and reordered if there is a sampler."""

    @staticmethod
    def _batch(batch_size: int) -> int:
        if batch_size < 1:
            raise UserError(f"batch size must be at least 1, not {batch_size}")
        return batch_size
