"""Random numbers that depend on a run's seed and what they are for, and on nothing that ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, name: str) -> int:
    """A seed for one purpose.

    >>> derive(0, "sparse") == derive(0, "sparse"), derive(0, "sparse") == derive(0, "recover")
    (True, False)
    """
    return int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:15], 16)


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Global random numbers that depend on (seed, name) alone; the outer state comes back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, name))
        yield
