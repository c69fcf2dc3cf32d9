"""Learning rates that `torch.optim.lr_scheduler` has no class for."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, prod

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


class WarmCosine:
    """For LambdaLR: the rate grows exponentially from `ends` of its height over `warm_up` epochs, then falls to `ends`
    again by a cosine.

    >>> rate = WarmCosine(epochs=6, warm_up=2, ends=0.01)
    >>> [round(rate(epoch), 3) for epoch in range(7)]
    [0.01, 0.1, 1.0, 0.855, 0.505, 0.155, 0.01]
    """

    def __init__(self, epochs: int, warm_up: int, ends: float):
        if not 0 < ends <= 1 or warm_up < 0:
            raise UserError(f"scheduler: ends above 0 and at most 1, warm_up at least 0, got {ends}, {warm_up}")
        self.epochs, self.warm_up, self.ends = epochs, warm_up, ends

    def __call__(self, epoch: int) -> float:
        if epoch < self.warm_up:
            return self.ends ** (1 - epoch / self.warm_up)
        done = (epoch - self.warm_up) / max(1, self.epochs - self.warm_up)
        return self.ends + (1 - self.ends) * (1 + cos(pi * done)) / 2
