"""Learning rates that `torch.optim.lr_scheduler` has no class for."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from reprune.errors import UserError


class Factors:
    """For LambdaLR: MultiStepLR with a factor of its own at every milestone.

    >>> rate = Factors([1, 60], [10, 0.2])
    >>> [rate(epoch) for epoch in (0, 1, 59, 60)]
    [1, 10, 10, 2.0]
    """

    def __init__(self, milestones: Sequence[int], factors: Sequence[float]):
        self.milestones, self.factors = list(milestones), list(factors)
        if len(self.milestones) != len(self.factors) or min(self.factors, default=1) <= 0:
            raise UserError("scheduler: a factor above 0 for every milestone, got "
                            f"milestones={self.milestones}, factors={self.factors}")

    def __call__(self, epoch: int) -> float:
        return prod(factor for start, factor in zip(self.milestones, self.factors, strict=True) if start <= epoch)
