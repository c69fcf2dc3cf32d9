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

    def __init__(self, size: int, seed: int, batch_size: int, share: tuple[int, int] = (0, 1)):
        """share: (rank, processes) where several train together: each gets an equal part of every batch."""
        self.rank, self.processes = share
        last = size % batch_size  # the images of a last, smaller batch
        lonely = last < 2 * self.processes  # one image for a process: batch norm cannot train on it
        self.size, self.seed, self.kept = size, seed, size - (last if lonely else last % self.processes)
        self.batch_size = batch_size // self.processes
        self.epoch = 0
        self.resume_at = 0  # batches of the next epoch that an earlier attempt has done
        self.first = 0  # as resume_at, of the present epoch

    def __len__(self) -> int:
        return self.kept // self.processes

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def next_epoch(self) -> tuple[torch.Tensor, torch.Generator]:
        """Order of the images int64 [kept], and the generator for whatever else is random in this epoch."""
        rng = generator(self.seed, self.epoch)
        self.epoch += 1
        self.first, self.resume_at = self.resume_at, 0
        return torch.randperm(self.size, generator=rng)[: self.kept], rng

    def part(self, values: torch.Tensor) -> torch.Tensor:
        """Of one value for each image of the epoch [kept], those that this process has still to see."""
        return values[self.rank :: self.processes][self.first * self.batch_size :]

    def __iter__(self):
        """(position, seed of this sample): a worker process needs nothing else, so their number changes nothing."""
        order, rng = self.next_epoch()
        seeds = torch.randint(2**62, (self.kept,), generator=rng)
        return iter(list(zip(self.part(order).tolist(), self.part(seeds).tolist(), strict=True)))


class Resumable:
    """A loader whose epoch can be gone on with in the middle: Lightning asks for its state, and gives it back.

    It counts in `done` the batches of the present epoch that it has given away.
    """

    sampler: EpochSampler
    done = 0

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.done % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.resume_at = state["batches"]
