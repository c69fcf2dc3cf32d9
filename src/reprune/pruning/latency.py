"""A budget of time, measured on this device: MACs that go are not always time that goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.pruning.queue import Queue
from reprune.pruning.ranking import Spread
from reprune.pruning.sockets import Scores
from reprune.structure.groups import Plan
from reprune.structure.timing import Times


@dataclass(kw_only=True)
class Latency(Spread):
    """The fewest blocks of filters removed such that a forward pass takes at most so long. Then blocks come back, the
    last gone first, as long as the pass stays within the budget: a width that costs the device nothing is kept.

    time        fraction of the original net's time that a pass may take
    ms          milliseconds of a pass, instead
    batch_size  of the pass
    """

    time: float = 0.5
    ms: float | None = None
    batch_size: int = 1
    multiple: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.time <= 1:
            raise UserError(f"allocation.time is the fraction to keep, above 0 and at most 1; got {self.time}")
        if self.ms is not None and self.ms <= 0 or self.batch_size < 1:
            raise UserError(f"allocation: ms must be above 0, batch_size at least 1, got {self.ms}, {self.batch_size}")

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        costs, x = probe.costs, batch(probe, self.batch_size)
        queue = self.queue(self.candidates(probe, scores), scores, probe)
        times = Times(probe.net, x)
        first = times if probe.original.net is probe.net else Times(probe.original.net, x)
        dense = first({})
        try:
            gone = self.widest(queue, times, dense, probe.share)
        finally:
            first.keep()
            times.keep()
        plan = queue.taken(gone)
        print(f"latency: {1000 * times(plan):.2f} ms promised, {1000 * dense:.2f} unpruned, for a batch of "
              f"{self.batch_size} ({times.setting['device']}, threads {times.setting['threads']}), with "
              f"{costs.plan(plan).macs / probe.original.cost.macs:.3g} of the MACs; {times.new} operations measured, "
              f"the others found in {times.file}", flush=True)
        return plan

    def widest(self, queue: Queue, times: Times, dense: float, share: float) -> list[int]:
        """How many filters of each group go. Raises UserError where the budget cannot be met."""
        known: dict[tuple[int, ...], float] = {}

        def spent(gone: list[int]) -> float:
            if (key := tuple(gone)) not in known:
                known[key] = times(queue.taken(gone))
            return known[key]

        goal = self.time * dense if self.ms is None else self.ms / 1000
        budget = dense - (dense - goal) * share
        if (least := spent(queue.counts(queue.stops[-1]).tolist())) > budget:
            raise UserError(f"a budget of {1000 * budget:.3g} ms cannot be met: with every candidate layer at its "
                            f"floor a pass takes {1000 * least:.3g} of {1000 * dense:.3g} ms "
                            f"(time={least / dense:.3g}); allow more groups or a lower floor")
        n = queue.fewest(lambda n: spent(queue.counts(n).tolist()), budget)
        return widened(queue, n, lambda gone: spent(gone) <= budget)


def widened(queue: Queue, n: int, fits: Callable[[list[int]], bool]) -> list[int]:
    """How many filters of each group go when the first n did, and blocks come back until none fits any more."""
    gone = queue.counts(n).tolist()
    order = list(dict.fromkeys(reversed(queue.group[:n].tolist())))
    ends = [queue.ends(i) for i in range(len(gone))]
    before = None
    while before != gone:
        before = list(gone)
        for i in order:
            while gone[i] and fits(less := [*gone[:i], max(e for e in ends[i] if e < gone[i]), *gone[i + 1:]]):
                gone = less
    return gone


def batch(probe: Probe, size: int) -> Tensor:
    """So many images, in the memory format of the net's weights."""
    last = any(p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
               for p in probe.net.parameters())
    return probe.example.expand(size, *probe.example.shape[1:]).contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format)
