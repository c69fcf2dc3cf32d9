r"""Filter selection by loss increase.                       Mitsuno & Kurita, ICPR 2020, arXiv:2011.02389

    delta_c = L(net without c; S) - L(net; S)                (1)    signed; the filters with the smallest delta go first

    S        images drawn at random from the training set, not augmented
    L        mean cross-entropy on S, eval mode
    c        one filter, silenced where its channel is read

Deviations: a reconstruction. The abstract says only that filters are selected by the loss increase on randomly selected
training samples; the number of samples, the steps, the floor and the stopping rule are ours, each a knob. All scores
once is `criterion: LossIncrease` with any allocation; scoring again after every few filters is `allocation: Greedy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from rich.progress import track
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.allocation import Budget, removed
from reprune.pruning.probe import Probe, eval_mode
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
    resample             draw new images for every scoring (default: the same throughout)
    max_loss_increase    also stop when the loss has grown by this much (null = never)
    """

    criterion: Criterion
    step_fraction: float = 0.05
    resample: bool = False
    max_loss_increase: float | None = None
    spread: str = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.step_fraction < 1:
            raise UserError(f"allocation.step_fraction must be at least 0 and below 1, got {self.step_fraction}")

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        names = [g.name for g in self.candidates(probe, scores)]
        whole = {g.name: torch.ones(g.size, dtype=torch.bool) for g in probe.groups if g.name in names}
        start = None if self.max_loss_increase is None else probe.loss({})
        plan, now = whole, probe
        while True:
            queue = self.queue(self.candidates(now, scores), scores, now)
            enough, block = self.enough(queue, now), queue.at_least(max(1, int(len(queue.group) * self.step_fraction)))
            step = queue.plan(min(enough, block))
            plan = {name: lift(keep, step[name]) if name in step else keep for name, keep in plan.items()}
            if enough <= block:
                return plan
            now = replace(now, net=remove(now.net, step, check=False), seed=probe.seed + self.resample * removed(plan))
            if start is not None and now.loss({}) - start > self.max_loss_increase:
                return plan
            scores = self.criterion([g for g in now.groups if g.name in names], now)


def lift(keep: Tensor, of_kept: Tensor) -> Tensor:
    """The mask over all filters that a mask over the kept ones means. bool [size], bool [keep.sum()] -> bool [size]

    >>> lift(torch.tensor([True, False, True]), torch.tensor([False, True]))
    tensor([False, False,  True])
    """
    return keep.masked_scatter(keep, of_kept)
