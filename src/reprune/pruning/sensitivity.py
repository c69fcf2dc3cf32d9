"""How many filters each group can lose: held-out accuracy with a share of one group silenced, group by group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from rich.progress import track
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.allocation import floored, keep_best
from reprune.pruning.probe import Probe, eval_mode
from reprune.pruning.ranking import Goal
from reprune.pruning.sockets import Scores
from reprune.structure.groups import FilterGroup, Plan
from reprune.structure.suffix import Suffix


@dataclass(kw_only=True)
class Sensitivity(Goal):
    """The highest rate at which a group, alone, costs at most `tau` points; its lowest scores go.

    tau            tolerated drop of top-1 on held-out images, in points of the net as it is; in every round of several
    macs, params   fraction of the net to keep: tau is then the smallest one that meets the budget, and the groups that
                   this tau adds are cut only as far as the budget needs
    rates          tried in every group, ascending
    n_samples      held-out images to measure on (null = all)
    order          of the plan, and so of layer-by-layer rounds: "forward", or "ascending" = least sensitive group first
    images         at most so many run at once: bounds the memory
    """

    tau: float = 1.0
    rates: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    n_samples: int | None = None
    order: str = "forward"
    images: int = 125
    needed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        rates = self.rates if isinstance(self.rates, Sequence) else ()
        if not rates or not all(isinstance(rate, int | float) and 0 < rate < 1 for rate in rates):
            raise UserError(f"allocation.rates must be a list of fractions removed, between 0 and 1, got {self.rates}")
        self.rates = sorted(rates)
        if self.order not in ("forward", "ascending"):
            raise UserError(f"allocation.order: {self.order!r} is not known, choose forward or ascending")
        if self.tau < 0 or self.images < 1 or (self.n_samples is not None and self.n_samples < 1):
            raise UserError("allocation: tau must be at least 0, images and n_samples at least 1, got "
                            f"{self.tau}, {self.images}, {self.n_samples}")
        super().__post_init__()

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        groups = self.candidates(probe, scores)
        tried = torch.tensor([[self.count(g, rate, probe) for rate in self.rates] for g in groups])   # [groups, rates]
        drops = self.drops(groups, tried, scores, probe)                                              # the same shape
        counts = tolerated(tried, drops, self.tau) if self.kept is None else \
            self.within_budget(groups, tried, drops, probe)
        order = drops.mean(1).argsort(stable=True).tolist() if self.order == "ascending" else range(len(groups))
        return {groups[i].name: keep_best(scores[groups[i].name], int(counts[i])) for i in order}

    def count(self, group: FilterGroup, rate: float, probe: Probe) -> int:
        return self.to_remove(group.size - floored(group.size * rate), group, probe)

    @torch.no_grad()
    def drops(self, groups: list[FilterGroup], tried: Tensor, scores: Scores, probe: Probe) -> Tensor:
        """Points of top-1 lost with the `tried[g, r]` lowest scores of group g silenced. -> [groups, rates]"""
        loader = probe.held_out(self.images)
        wanted = self.n_samples or len(probe.data.parts.val)
        gone = [torch.stack([~keep_best(scores[g.name], int(n)) for n in row])
                for g, row in zip(groups, tried, strict=True)]                                # each [rates, size]
        whole, hits, seen = 0, torch.zeros(tried.shape), 0

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            left = wanted
            for x, y in track(loader, "sensitivity", transient=True):
                if left <= 0:
                    return
                yield x[:left], y[:left]
                left -= len(y)

        with eval_mode(probe.net):
            for suffix in Suffix.over(probe.net, batches(), self.images):
                whole += (suffix.logits.argmax(1) == suffix.y).sum()
                hits += torch.stack([(suffix.logits_without(g, mask).argmax(2) == suffix.y).sum(1)
                                     for g, mask in zip(groups, gone, strict=True)]).cpu()
                seen += len(suffix.y)
        return 100 * (int(whole) - hits) / seen

    def within_budget(self, groups: list[FilterGroup], tried: Tensor, drops: Tensor, probe: Probe) -> Tensor:
        """-> filters to remove from each group [groups]. Raises UserError where the highest rates are not enough."""
        budget, columns = self.budget(probe), [g.name for g in probe.groups]
        where = torch.tensor([columns.index(g.name) for g in groups])

        sizes = torch.tensor([g.size for g in groups])

        def cut(n: int) -> Tensor:                                # so many more than `less`, to a multiple
            kept = sizes - less - more.clamp_max(n)
            return sizes - ((kept + self.multiple - 1) // self.multiple * self.multiple).minimum(sizes)

        def spent(counts: Tensor) -> int:
            removed = torch.zeros(len(columns)).index_add_(0, where, counts.float())
            return getattr(probe.costs.after(removed), self.unit)

        def first(low: int, high: int, enough) -> int:            # the smallest number that is enough
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if enough(middle) else (middle + 1, high)
            return low

        taus = drops.unique()
        if spent(tolerated(tried, drops, taus[-1])) > budget:
            remain = spent(tolerated(tried, drops, taus[-1])) / getattr(probe.original.cost, self.unit)
            raise UserError(f"a budget of {self.kept:.4g} of the {self.unit} cannot be met: at the highest of "
                            f"allocation.rates, {self.rates[-1]}, {remain:.4g} remain; add higher rates or more groups")
        at = first(0, len(taus) - 1, lambda i: spent(tolerated(tried, drops, taus[i])) <= budget)
        less = tolerated(tried, drops, taus[at - 1]) if at else torch.zeros(len(groups), dtype=torch.long)
        more = tolerated(tried, drops, taus[at]) - less
        steps = first(0, int(more.max()), lambda n: spent(cut(n)) <= budget)
        counts, before = cut(steps), cut(max(0, steps - 1))
        for i in drops.mean(1).argsort(descending=True).tolist() if self.multiple > 1 else ():
            fewer = counts.clone()                                # whole blocks went: some may come back
            fewer[i] = before[i]
            counts = fewer if spent(fewer) <= budget else counts
        return counts


def tolerated(tried: Tensor, drops: Tensor, tau: float) -> Tensor:
    """The largest count of each row whose drop is at most tau; 0 where none is. [groups, rates] twice -> [groups]

    >>> tolerated(torch.tensor([[1, 2, 3], [1, 2, 3]]), torch.tensor([[0.2, 0.9, 5.0], [2.0, 3.0, 4.0]]), 1.0)
    tensor([2, 0])
    """
    return torch.where(drops <= tau, tried, 0).amax(1)
