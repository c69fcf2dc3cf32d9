"""Which filters stay: scores -> plan. Uniform rate, per-layer rates, global threshold, until a budget is met.

All of them take the lowest scores first, keep at least `min_filters` (and the fraction `min_keep`) of every group, and
with several rounds aim at `probe.share` of the whole reduction, counted from the net before the first round.

With `multiple` = m above 1, a group that is cut keeps a multiple of m filters: widths that fast kernels like. A rate
cuts to the nearest one (the larger of two), never below the floor rounded up. Across groups, filters go in blocks down
to the next multiple, in the order of the middle filter of each: a block is due when half of it is. m = 1: one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.pruning.queue import Queue
from reprune.pruning.sockets import Scores
from reprune.structure.groups import FilterGroup, Plan
from reprune.structure.names import all_match, conv_numbers, matches

NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda s: s,
    "max": lambda s: s / s.abs().max().clamp_min(1e-12),
    "mean": lambda s: s / s.abs().mean().clamp_min(1e-12),
    "l2": lambda s: s / s.norm().clamp_min(1e-12),
}


@dataclass(kw_only=True)
class _Allocation:
    """What all allocations share: who is a candidate, and how few filters may stay."""

    groups: str = "all"                 # "all" | "inner": only widths no addition couples (first convs of a block)
    skip: Sequence[int | str] = ()      # conv numbers (counted from 1, shortcuts left out) or name patterns
    min_filters: int = 1
    min_keep: float = 0.0               # of a group's original size
    multiple: int = 1                   # of this many filters stay in a group, or all of them

    def __post_init__(self) -> None:
        _choice("allocation.groups", self.groups, ("all", "inner"))
        _fraction("allocation.min_keep", self.min_keep)
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
class Uniform(_Allocation):
    """The same rate in every group."""

    rate: float = 0.5                   # fraction of filters REMOVED
    rounding: str = "removed"           # floor "removed" = int(C rate) go | floor "kept" = int(C (1 - rate)) stay

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction("allocation.rate", self.rate)
        _choice("allocation.rounding", self.rounding, ("removed", "kept"))

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        numbers = conv_numbers(probe.net)
        return {g.name: keep_best(scores[g.name], self.count(g, self.rate_of(g, numbers), probe))
                for g in self.candidates(probe, scores)}

    def rate_of(self, group: FilterGroup, numbers: dict[str, int]) -> float:
        return self.rate

    def count(self, group: FilterGroup, rate: float, probe: Probe) -> int:
        """Filters to remove now so that `share * rate` of the original ones are gone."""
        size = probe.original.sizes.get(group.name, group.size)
        gone = size - _floor(size * (1 - rate * probe.share)) if self.rounding == "kept" else \
            _floor(size * rate * probe.share)
        return self.to_remove(min(size - gone, group.size), group, probe)


@dataclass(kw_only=True)
class PerLayer(Uniform):
    """A rate for each layer or stage; layers that no entry names keep all their filters."""

    rate: float = 0.0
    rates: Mapping[int | str, float] = field(default_factory=dict)    # conv number, name prefix or pattern -> rate

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, rate in self.rates.items():
            _fraction(f"allocation.rates[{key}]", rate)

    def candidates(self, probe: Probe, scores: Scores | None = None) -> list[FilterGroup]:
        numbers = conv_numbers(probe.net)
        all_match("allocation.rates", self.rates, numbers)
        return [g for g in super().candidates(probe, scores) if self.rate_of(g, numbers)]

    def rate_of(self, group: FilterGroup, numbers: dict[str, int]) -> float:
        """The last entry that matches counts."""
        return ([0.0] + [rate for key, rate in self.rates.items() if matches(key, group.name, numbers)])[-1]


@dataclass(kw_only=True)
class Global(_Allocation):
    """One threshold for the whole net: the lowest `rate` of all candidate filters go, wherever they are."""

    rate: float = 0.5
    normalize: str = "none"             # per group, before comparing: none | max | mean | l2

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction("allocation.rate", self.rate)
        _choice("allocation.normalize", self.normalize, tuple(NORMALIZERS))

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        groups = self.candidates(probe, scores)
        original = sum(probe.original.sizes.get(g.name, g.size) for g in groups)
        gone = original - sum(g.size for g in groups)
        queue = self.queue(groups, scores, probe)
        return queue.plan(queue.nearest(_floor(original * self.rate * probe.share) - gone))

    def queue(self, groups: list[FilterGroup], scores: Scores, probe: Probe) -> Queue:
        return Queue.build(groups, {g.name: NORMALIZERS[self.normalize](scores[g.name]) for g in groups},
                           [self.room(g, probe) for g in groups], self.multiple)


@dataclass(kw_only=True)
class Budget(Global):
    """The fewest filters (blocks of them) removed such that the net meets a budget of MACs or parameters.

    macs, params: fraction of the original net that may be KEPT (give one of them); spread: "uniform" = the same rate in
    every group, "global" = lowest scores first, wherever they are.
    """

    macs: float | None = None
    params: float | None = None
    spread: str = "uniform"
    rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _choice("allocation.spread", self.spread, ("uniform", "global"))
        if (self.macs is None) == (self.params is None):
            raise UserError(f"allocation: give either macs or params, got macs={self.macs}, params={self.params}")
        if not 0 < self.kept <= 1:
            raise UserError(f"allocation.{self.unit} is the fraction to keep, above 0 and at most 1; got {self.kept}")

    @property
    def unit(self) -> str:
        return "params" if self.macs is None else "macs"

    @property
    def kept(self) -> float:
        return getattr(self, self.unit)

    def budget(self, probe: Probe) -> float:
        """MACs or parameters that may stay at the end of this round."""
        return getattr(probe.original.cost, self.unit) * (1 - (1 - self.kept) * probe.share)

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        queue = self.queue(self.candidates(probe, scores), scores, probe)
        return queue.plan(self.enough(queue, probe))

    def queue(self, groups: list[FilterGroup], scores: Scores, probe: Probe) -> Queue:
        queue = super().queue(groups, scores, probe)
        return queue if self.spread == "global" else \
            queue.by_rate([probe.original.sizes.get(g.name, g.size) for g in groups])

    def enough(self, queue: Queue, probe: Probe) -> int:
        """How many filters of the queue must go. Raises UserError where even all of them are too few."""
        columns = [g.name for g in probe.groups]
        where = torch.tensor([columns.index(g.name) for g in queue.groups])

        def spent(n: int) -> int:
            removed = torch.zeros(len(columns)).index_add_(0, where, queue.counts(n).float())
            return getattr(probe.costs.after(removed), self.unit)

        budget = self.budget(probe)
        low, high = 0, len(queue.stops) - 1                       # cost falls with n: bisect
        if spent(queue.stops[high]) > budget:
            remain = spent(queue.stops[high]) / getattr(probe.original.cost, self.unit)
            finer = f", a lower floor or a smaller multiple than {self.multiple}" if self.multiple > 1 else \
                " or a lower floor"
            raise UserError(f"a budget of {self.kept:.4g} of the {self.unit} cannot be met: with every candidate layer "
                            f"at its floor {remain:.4g} remain; allow more groups{finer}")
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if spent(queue.stops[middle]) <= budget else (middle + 1, high)
        return queue.stops[low]


def removed(plan: Plan) -> int:
    """How many filters a plan takes away."""
    return sum(int((~mask).sum()) for mask in plan.values())


def keep_best(scores: Tensor, remove: int) -> Tensor:
    """Keep mask without the `remove` lowest scores; among equals the first go first. [size] -> bool [size]

    >>> keep_best(torch.tensor([3., 1., 2.]), 1)
    tensor([ True, False,  True])
    """
    keep = torch.ones(len(scores), dtype=torch.bool)
    keep[scores.argsort(stable=True)[:remove]] = False
    return keep


def _floor(x: float) -> int:
    """int() that is not fooled by 0.1 * 30 = 2.9999999999999996."""
    return int(x + 1e-9)


def _fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{name} must be at least 0 and below 1 (the fraction of filters removed), got {value}")


def _choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{name}: {value!r} is not known, choose one of {', '.join(allowed)}")
