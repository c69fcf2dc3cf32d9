r"""Filter selection by loss increase.                       Mitsuno & Kurita, ICPR 2020, arXiv:2011.02389

    delta_c = L(net without c; S) - L(net; S)                (1)    signed; the filters with the smallest delta go first

    S        images drawn at random from the training set, not augmented
    L        mean cross-entropy on S, eval mode
    c        one filter, silenced where its channel is read

All scores once is `criterion: LossIncrease` with any allocation; `allocation: Greedy` scores again after every few
filters. Nothing is trained in between, and without new BN statistics the loss of what is left passes that of a guess,
ln(classes), after two or three blocks: scores (1) are noise from there. So it re-estimates the statistics before every
scoring, and scores no net whose loss on S is above ln(classes).

Deviations: a reconstruction. The abstract says only that filters are selected by the loss increase on randomly
selected training samples; the number of samples, the steps, the floor, the stopping rule, the new BN statistics and
what becomes of a broken net are ours, each but the last a knob. Rows leave widths that additions couple out (`groups:
all` prunes them jointly).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from rich.progress import track
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.allocation import removed
from reprune.pruning.probe import Probe, eval_mode
from reprune.pruning.ranking import Budget
from reprune.pruning.recalibrate import Recalibrate
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup, Plan
from reprune.structure.suffix import Suffix
from reprune.structure.surgery import remove


class LossIncrease(Criterion):
    """Eq. 1.

    n_samples    images in S
    batch_size   of them at a time
    images       at most so many run at once, candidates times batch_size: bounds the memory
    """

    def __init__(self, n_samples: int = 1000, batch_size: int = 125, images: int = 125):
        if min(n_samples, batch_size, images) < 1:
            raise UserError("loss increase: n_samples, batch_size and images must be at least 1, got "
                            f"{n_samples}, {batch_size}, {images}")
        self.n_samples, self.batch_size, self.images = n_samples, batch_size, images

    @torch.no_grad()
    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        groups, total = list(groups), {}
        n = min(self.n_samples, len(probe.data.parts.train))
        batches = track(probe.data.plain(self.batch_size, probe.seed, n, probe.example.device), "loss increase",
                        total=math.ceil(n / self.batch_size), transient=True)
        with eval_mode(probe.net):
            for suffix in Suffix.over(probe.net, batches, self.images):
                for group in groups:
                    each = torch.eye(group.size, dtype=torch.bool)
                    share = (suffix.losses_without(group, each) - suffix.loss()) * len(suffix.y) / n
                    total[group.name] = total.get(group.name, 0) + share.double()
        return {name: scores.cpu() for name, scores in total.items()}


@dataclass(kw_only=True)
class Greedy(Budget):
    """Removes a block of the lowest scores, scores what is left again, until the budget is met.

    step_fraction        of the remaining candidates that go at once; 0 = one by one
    recalibrate          training images for new BN statistics of what is left, before every scoring; 0 = as they were
    resample             draw new images for every scoring (default: the same throughout)
    max_loss_increase    also stop when the loss has grown by this much (null = never)

    A net that says less than chance is not scored: the rest goes by the last ranking of one that said more. Losses are
    means over the images that the criterion looks at.
    """

    criterion: Criterion
    step_fraction: float = 0.05
    recalibrate: int = 0
    resample: bool = False
    max_loss_increase: float | None = None
    spread: str = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.step_fraction < 1:
            raise UserError(f"allocation.step_fraction must be at least 0 and below 1, got {self.step_fraction}")
        if self.recalibrate:
            Recalibrate(self.recalibrate)                         # refuses what is no number of images

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        plan = {g.name: torch.ones(g.size, dtype=torch.bool) for g in self.candidates(probe, scores)}
        now, first = probe, None if self.max_loss_increase is None else self.loss(probe)
        while True:
            queue = self.queue(self.candidates(now, scores), scores, now)
            enough, block = self.enough(queue, now), queue.at_least(max(1, int(len(queue.group) * self.step_fraction)))
            if enough <= block:
                return lifted(plan, queue.plan(enough))
            step = queue.plan(block)
            less = lifted(plan, step)
            now = self.without(step, now, seed=probe.seed + self.resample * removed(less))
            if first is not None and self.loss(now) - first > self.max_loss_increase:
                return less
            if self.broken(now):
                print(f"greedy: with {removed(less)} filters gone the net says less than chance: the rest goes by the "
                      "last ranking before", flush=True)
                return lifted(plan, queue.plan(enough))
            plan, scores = less, self.criterion([g for g in now.groups if g.name in plan], now)

    def without(self, step: Plan, probe: Probe, seed: int) -> Probe:
        """At the smaller net."""
        now = replace(probe, net=remove(probe.net, step, check=False), seed=seed)
        if self.recalibrate:
            Recalibrate(self.recalibrate)(now.net, now)
        return now

    def loss(self, probe: Probe) -> float:
        return probe.loss({}, self.criterion.n_samples or 1000)

    def broken(self, probe: Probe) -> bool:
        """Its loss is above that of a guess, or no number; a ranking by weights alone is none the worse for it."""
        return self.criterion.n_samples is not None and not self.loss(probe) <= math.log(probe.data.classes)


def lifted(plan: Plan, step: Plan) -> Plan:
    """`plan`, with `step` taken off what it keeps."""
    return {name: lift(keep, step[name]) if name in step else keep for name, keep in plan.items()}


def lift(keep: Tensor, of_kept: Tensor) -> Tensor:
    """The mask over all filters that a mask over the kept ones means. bool [size], bool [keep.sum()] -> bool [size]

    >>> lift(torch.tensor([True, False, True]), torch.tensor([False, True]))
    tensor([False, False,  True])
    """
    return keep.masked_scatter(keep, of_kept)
