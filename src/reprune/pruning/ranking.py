"""Groups compete: the lowest scores of the whole net go first, or all groups lose the same share, until enough is gone.

Raw scores of layers differ in scale (an L1-norm grows with the size of a filter): one ranking of them can take a layer
down to its floor. Hence the floor of `Global`, and `normalize`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.allocation import Limits, choice, floored, fraction
from reprune.pruning.probe import Probe
from reprune.pruning.queue import Queue
from reprune.pruning.sockets import Scores
from reprune.structure.groups import FilterGroup, Plan

NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda s: s,
    "max": lambda s: s / s.abs().max().clamp_min(1e-12),
    "mean": lambda s: s / s.abs().mean().clamp_min(1e-12),
    "l2": lambda s: s / s.norm().clamp_min(1e-12),
}


@dataclass(kw_only=True)
class Ranked(Limits):
    """One ranking of all filters."""

    normalize: str = "none"             # per group, before comparing: none | max | mean | l2

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("allocation.normalize", self.normalize, tuple(NORMALIZERS))

    def queue(self, groups: list[FilterGroup], scores: Scores, probe: Probe) -> Queue:
        return Queue.build(groups, {g.name: NORMALIZERS[self.normalize](scores[g.name]) for g in groups},
                           [self.room(g, probe) for g in groups], self.multiple)


@dataclass(kw_only=True)
class Spread(Ranked):
    """spread: "uniform" = the same rate in every group, "global" = lowest scores first, wherever they are."""

    spread: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("allocation.spread", self.spread, ("uniform", "global"))

    def queue(self, groups: list[FilterGroup], scores: Scores, probe: Probe) -> Queue:
        queue = super().queue(groups, scores, probe)
        return queue if self.spread == "global" else \
            queue.by_rate([probe.original.sizes.get(g.name, g.size) for g in groups])


@dataclass(kw_only=True)
class Global(Ranked):
    """One threshold for the whole net: the lowest `rate` of all candidate filters go, wherever they are."""

    rate: float = 0.5
    min_keep: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("allocation.rate", self.rate)

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        groups = self.candidates(probe, scores)
        original = sum(probe.original.sizes.get(g.name, g.size) for g in groups)
        gone = original - sum(g.size for g in groups)
        queue = self.queue(groups, scores, probe)
        return queue.plan(queue.nearest(floored(original * self.rate * probe.share) - gone))


@dataclass(kw_only=True)
class Goal(Limits):
    """A budget. macs, params: fraction of the original net that may be KEPT (give one of them)."""

    macs: float | None = None
    params: float | None = None
    needed: ClassVar[bool] = True       # False: may be left out

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [limit for limit in (self.macs, self.params) if limit is not None]
        if len(given) > 1 or self.needed and not given:
            raise UserError(f"allocation: give either macs or params, got macs={self.macs}, params={self.params}")
        if given and not 0 < self.kept <= 1:
            raise UserError(f"allocation.{self.unit} is the fraction to keep, above 0 and at most 1; got {self.kept}")

    @property
    def unit(self) -> str:
        return "params" if self.macs is None else "macs"

    @property
    def kept(self) -> float | None:
        return getattr(self, self.unit)

    def budget(self, probe: Probe) -> float:
        """MACs or parameters that may stay at the end of this round."""
        return getattr(probe.original.cost, self.unit) * (1 - (1 - self.kept) * probe.share)


@dataclass(kw_only=True)
class Budget(Spread, Goal):
    """The fewest filters (blocks of them) removed such that the net meets the budget."""

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        queue = self.queue(self.candidates(probe, scores), scores, probe)
        return queue.plan(self.enough(queue, probe))

    def enough(self, queue: Queue, probe: Probe) -> int:
        """How many filters of the queue must go. Raises UserError where even all of them are too few."""
        columns = [g.name for g in probe.groups]
        where = torch.tensor([columns.index(g.name) for g in queue.groups])

        def spent(n: int) -> int:
            removed = torch.zeros(len(columns)).index_add_(0, where, queue.counts(n).float())
            return getattr(probe.costs.after(removed), self.unit)

        budget = self.budget(probe)
        if spent(queue.stops[-1]) > budget:
            remain = spent(queue.stops[-1]) / getattr(probe.original.cost, self.unit)
            finer = f", a lower floor or a smaller multiple than {self.multiple}" if self.multiple > 1 else \
                " or a lower floor"
            raise UserError(f"a budget of {self.kept:.4g} of the {self.unit} cannot be met: with every candidate layer "
                            f"at its floor {remain:.4g} remain; allow more groups{finer}")
        return queue.fewest(spent, budget)
