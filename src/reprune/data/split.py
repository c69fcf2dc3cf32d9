"""Which image belongs to which part. Seeded by the dataset, never by the run: all seeds share one split."""

from typing import NamedTuple

import torch
from torch import Tensor

from reprune.data.sampler import generator
from reprune.errors import UserError


class Parts(NamedTuple):
    """Row numbers, int64. train and val point into the published training set, test into the published test set."""

    train: Tensor
    val: Tensor
    test: Tensor


def stratified(labels: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows into (rest, held out); n rows are held out and every class gives the same share, to one image.

    >>> rest, held = stratified(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), n=4, seed=0)
    >>> sorted([*rest.tolist(), *held.tolist()]), int((held < 4).sum())
    ([0, 1, 2, 3, 4, 5, 6, 7], 2)
    """
    shuffled = torch.randperm(len(labels), generator=generator(seed))
    shuffled = shuffled[labels[shuffled].argsort(stable=True)]  # grouped by class, random inside
    count = labels.bincount()
    first = count.cumsum(0) - count  # where each class begins
    mine = labels[shuffled]
    rank = torch.arange(len(labels)) - first[mine]  # 0, 1, 2 .. inside each class
    share = (rank + 0.5) / count[mine]  # the smallest shares are spread evenly over the classes
    by_share = shuffled[share.argsort(stable=True)]
    return by_share[n:].sort().values, by_share[:n].sort().values


def split(name: str, labels: Tensor, test_size: int, val_size: int, split_seed: int, limit: int | None) -> Parts:
    """Parts of a dataset with training labels [N]; `limit` keeps that many random images of each part."""
    if not isinstance(val_size, int) or not 0 <= val_size <= len(labels) - 2:
        raise UserError(f"dataset {name}: val_size is {val_size}; of its {len(labels)} training images "
                        f"0 to {len(labels) - 2} can be held out")
    if limit is not None and (not isinstance(limit, int) or limit < 2):
        raise UserError(f"dataset {name}: limit is {limit}; use null (all images) or a whole number from 2 up")
    parts = Parts(*stratified(labels, val_size, split_seed), torch.arange(test_size))
    if limit is None:
        return parts
    return Parts(*(rows[torch.randperm(len(rows), generator=generator(split_seed, 1))[:limit]] for rows in parts))
