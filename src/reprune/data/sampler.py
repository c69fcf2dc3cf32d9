"""Randomness of the data path: own generators, so that the global one is never touched, and one per (seed, epoch)."""

import numpy as np
import torch


def generator(*seeds: int) -> torch.Generator:
    """A CPU generator for a tuple of numbers; neighbouring tuples give unrelated sequences.

    Always on the CPU: a GPU run and a CPU run then see the same batches.
    """
    mixed = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


class EpochSampler:
    """Order of one epoch, determined by (seed, epoch). Epochs count up by themselves unless somebody sets them.

    An epoch begins with its first batch, not with `iter(loader)`: Lightning makes iterators that it throws away, and
    makes the one for the first epoch before it sets the epoch. So the loaders' `__iter__` are generators.
    """

    def __init__(self, size: int, seed: int, batch_size: int):
        lonely = batch_size > 1 and size % batch_size == 1  # a last batch of one image: batch norm cannot train on it
        self.size, self.seed, self.kept = size, seed, size - lonely
        self.epoch = 0

    def __len__(self) -> int:
        return self.kept

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def next_epoch(self) -> tuple[torch.Tensor, torch.Generator]:
        """Order of the images int64 [len(self)], and the generator for whatever else is random in this epoch."""
        rng = generator(self.seed, self.epoch)
        self.epoch += 1
        return torch.randperm(self.size, generator=rng)[: self.kept], rng

    def __iter__(self):
        """(position, seed of this sample): a worker process needs nothing else, so their number changes nothing."""
        order, rng = self.next_epoch()
        seeds = torch.randint(2**62, (self.kept,), generator=rng)
        return iter(list(zip(order.tolist(), seeds.tolist(), strict=True)))
