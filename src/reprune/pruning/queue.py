"""In which order filters go when groups compete: the lowest scores first, or all groups at the same rate; in blocks,
where a multiple of several filters is to stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reprune.pruning.sockets import Scores
from reprune.structure.groups import FilterGroup, Plan


@dataclass
class Queue:
    """Filters in the order they go, [n] each. group: its index; filter: index inside the group; due: how many of its
    group are gone when its block is half gone."""

    groups: list[FilterGroup]
    group: Tensor
    filter: Tensor
    due: Tensor

    @classmethod
    def build(cls, groups: list[FilterGroup], scores: Scores, room: list[int], multiple: int = 1) -> Queue:
        """Lowest scores first, at most `room` filters of each group, in blocks down to the next multiple."""
        first = [scores[g.name].sort(stable=True) for g in groups]
        due = [middles(g.size, r, multiple) for g, r in zip(groups, room, strict=True)]
        values = torch.cat([s.values[d - 1] for s, d in zip(first, due, strict=True)])
        filters = torch.cat([s.indices[:r] for s, r in zip(first, room, strict=True)])
        owner = torch.cat([torch.full((r,), i) for i, r in enumerate(room)]).long()
        order = values.argsort(stable=True)
        return cls(groups, owner[order], filters[order], torch.cat(due)[order])

    def by_rate(self, sizes: list[int]) -> Queue:
        """The same filters of each group in the same order, but groups advance together: by the fraction gone."""
        size = torch.tensor(sizes)[self.group]
        now = torch.tensor([g.size for g in self.groups])[self.group]
        order = ((self.due + size - now) / size).argsort(stable=True)
        return Queue(self.groups, self.group[order], self.filter[order], self.due[order])

    @cached_property
    def stops(self) -> list[int]:
        """How many filters may go: the ends of the blocks."""
        new = (self.group[1:] != self.group[:-1]) | (self.due[1:] != self.due[:-1])
        return [0, *(new.nonzero().flatten() + 1).tolist(), *[len(self.group)] * (len(self.group) > 0)]

    def nearest(self, n: int) -> int:
        """The stop that is nearest to n, the first of two."""
        return min(self.stops, key=lambda stop: abs(stop - n))

    def at_least(self, n: int) -> int:
        """The first stop that is not before n, or the last."""
        return next((stop for stop in self.stops if stop >= n), self.stops[-1])

    def counts(self, n: int) -> Tensor:
        """Filters of each group among the first n, [groups]."""
        return torch.bincount(self.group[:n], minlength=len(self.groups))

    def fewest(self, cost: Callable[[int], float], budget: float) -> int:
        """The first stop whose cost is within the budget, as costs fall with every block; the last where none is."""
        low, high = 0, len(self.stops) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if cost(self.stops[middle]) <= budget else (middle + 1, high)
        return self.stops[low]

    def ends(self, i: int) -> list[int]:
        """How many filters of a group may go: the ends of its blocks."""
        due = self.due[self.group == i]
        return [0, *((due[1:] != due[:-1]).nonzero().flatten() + 1).tolist(), len(due)]

    def plan(self, n: int) -> Plan:
        """Removes the first n."""
        return self.taken(self.counts(n).tolist())

    def taken(self, gone: Sequence[int]) -> Plan:
        """Removes the first filters of each group, so many."""
        plan = {g.name: torch.ones(g.size, dtype=torch.bool) for g in self.groups}
        for i, group in enumerate(self.groups):
            plan[group.name][self.filter[self.group == i][:gone[i]]] = False
        return plan


def middles(size: int, room: int, multiple: int) -> Tensor:
    """Of each of the `room` filters a group may lose: how many are gone with the middle one of its block.

    >>> middles(10, 6, 4), middles(10, 6, 1)                      # down to 8, then to 4
    (tensor([1, 1, 4, 4, 4, 4]), tensor([1, 2, 3, 4, 5, 6]))
    """
    rank = torch.arange(room)                                     # gone before it
    end = size - (size - 1 - rank) // multiple * multiple         # of its block
    start = (end - multiple).clamp_min(0)
    return start + (end - start + 1) // 2
