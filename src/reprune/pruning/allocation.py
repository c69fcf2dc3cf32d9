"""Which filters stay: scores -> plan. Here by rates, of all groups or of each; across groups in ranking.py.

All of them take the lowest scores first, keep at least `min_filters` (and the fraction `min_keep`) of every group, and
with several rounds aim at `probe.share` of the whole reduction, counted from the net before the first round.

With `multiple` = m above 1, a group that is cut keeps a multiple of m filters: widths that fast kernels like. A rate
cuts to the nearest one (the larger of two), never below the floor rounded up. Across groups, filters go in blocks down
to the next multiple, in the order of the middle filter of each: a block is due when half of it is. m = 1: one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Scores
from reprune.structure.groups import FilterGroup, Plan
from reprune.structure.names import all_match, conv_numbers, matches


@dataclass(kw_only=True)
class Limits:
    """What all allocations share: who is a candidate, and how few filters may stay."""

    groups: str = "all"                 # "all" | "inner": only widths no addition couples (first convs of a block)
    skip: Sequence[int | str] = ()      # conv numbers (counted from 1, shortcuts left out) or name patterns
    min_filters: int = 1
    min_keep: float = 0.0               # of a group's original size
    multiple: int = 1                   # of this many filters stay in a group, or all of them

    def __post_init__(self) -> None:
        choice("allocation.groups", self.groups, ("all", "inner"))
        fraction("allocation.min_keep", self.min_keep)
        if self.min_filters < 1:
            raise UserError(f"allocation.min_filters must be at least 1, got {self.min_filters}")
        if type(self.multiple) is not int or self.multiple < 1:
            raise UserError("allocation.multiple must be a whole number, at least 1 (1: any number may stay), "
                            f"got {self.multiple!r}")

    def candidates(self, probe: Probe, scores: Scores | None = None) -> list[FilterGroup]:
        """The groups that may shrink: conv filters, not skipped; with `scores`, only groups that have one."""
        numbers = conv_numbers(probe.net)
        found = [g for g in probe.groups if (scores is None or g.name in scores) and g.name in numbers
                 and not (self.groups == "inner" and g.coupled)]
        chosen = [g for g in found if not any(matches(s, g.name, numbers) for s in self.skip)]
        all_match("allocation.skip", self.skip, numbers)
        if not chosen:
            raise UserError("nothing to prune: no group of this net is left by allocation.groups and allocation.skip")
        return chosen

    def room(self, group: FilterGroup, probe: Probe) -> int:
        """How many filters of the group may still go."""
        floor = max(self.min_filters, math.ceil(self.min_keep * probe.original.sizes.get(group.name, group.size)))
        return max(0, group.size - math.ceil(floor / self.multiple) * self.multiple)

    def to_remove(self, kept: int, group: FilterGroup, probe: Probe) -> int:
        """How many filters go when about `kept` are to stay: the nearest multiple, or all there are."""
        below = kept // self.multiple * self.multiple
        above = min(below + self.multiple, group.size)
        nearest = above if above - kept <= kept - below else below
        return min(max(0, group.size - nearest), self.room(group, probe))


@dataclass(kw_only=True)
class Rates(Limits):
    """Every group at its rate, the fraction of filters REMOVED."""

    rounding: str = "removed"           # floor "removed" = int(C rate) go | floor "kept" = int(C (1 - rate)) stay

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("allocation.rounding", self.rounding, ("removed", "kept"))

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        numbers = conv_numbers(probe.net)
        return {g.name: keep_best(scores[g.name], self.count(g, self.rate_of(g, numbers), probe))
                for g in self.candidates(probe, scores)}

    def rate_of(self, group: FilterGroup, numbers: dict[str, int]) -> float:
        raise NotImplementedError

    def count(self, group: FilterGroup, rate: float, probe: Probe) -> int:
        """Filters to remove now so that `share * rate` of the original ones are gone."""
        size = probe.original.sizes.get(group.name, group.size)
        gone = size - floored(size * (1 - rate * probe.share)) if self.rounding == "kept" else \
            floored(size * rate * probe.share)
        return self.to_remove(min(size - gone, group.size), group, probe)


@dataclass(kw_only=True)
class Uniform(Rates):
    """The same rate in every group."""

    rate: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("allocation.rate", self.rate)

    def rate_of(self, group: FilterGroup, numbers: dict[str, int]) -> float:
        return self.rate


@dataclass(kw_only=True)
class PerLayer(Rates):
    """A rate for each layer or stage; layers that no entry names keep all their filters."""

    rates: Mapping[int | str, float] = field(default_factory=dict)    # conv number, name prefix or pattern -> rate

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, rate in self.rates.items():
            fraction(f"allocation.rates[{key}]", rate)

    def candidates(self, probe: Probe, scores: Scores | None = None) -> list[FilterGroup]:
        numbers = conv_numbers(probe.net)
        all_match("allocation.rates", self.rates, numbers)
        return [g for g in super().candidates(probe, scores) if self.rate_of(g, numbers)]

    def rate_of(self, group: FilterGroup, numbers: dict[str, int]) -> float:
        """The last entry that matches counts."""
        return ([0.0] + [rate for key, rate in self.rates.items() if matches(key, group.name, numbers)])[-1]


def removed(plan: Plan) -> int:
    """How many filters a plan takes away."""
    return sum(int((~mask).sum()) for mask in plan.values())


def keep_best(scores: Tensor, remove: int) -> Tensor:
    """Keep mask without the `remove` lowest scores, but always with the highest; among equals the first go first.
    [size] -> bool [size]

    >>> keep_best(torch.tensor([3., 1., 2.]), 1), keep_best(torch.tensor([3., 1., 2.]), 9)
    (tensor([ True, False,  True]), tensor([ True, False, False]))
    """
    keep = torch.ones(len(scores), dtype=torch.bool)
    keep[scores.argsort(stable=True)[:min(remove, len(scores) - 1)]] = False
    return keep


def floored(x: float) -> int:
    """int() that is not fooled by 0.1 * 30 = 2.9999999999999996."""
    return int(x + 1e-9)


def fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{name} must be at least 0 and below 1 (the fraction of filters removed), got {value}")


def choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{name}: {value!r} is not known, choose one of {', '.join(allowed)}")
