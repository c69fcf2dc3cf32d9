"""When filters go: all at once, in steps with a rising share, or layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reprune.errors import UserError
from reprune.groups import FilterGroup


@dataclass(frozen=True)
class Round:
    """One prune-and-recover turn."""

    share: float = 1.0                  # of the whole reduction that is reached when this round ends
    groups: tuple[str, ...] | None = None       # prune only these; None = all
    epochs: int | None = None           # of recovery after it; None = the recipe's


@dataclass
class OneShot:
    """Everything at once, then recover."""

    def __call__(self, groups: list[FilterGroup]) -> Iterator[Round]:
        yield Round()


@dataclass
class Steps:
    """n rounds, each taking an equal share; `epochs` of recovery between them, the recipe's after the last.

    >>> [round.share for round in Steps(n=4)([])]
    [0.25, 0.5, 0.75, 1.0]
    """

    n: int = 5
    epochs: int = 1

    def __post_init__(self) -> None:
        if self.n < 1 or self.epochs < 0:
            raise UserError(f"rounds: n must be at least 1 and epochs at least 0, got n={self.n}, epochs={self.epochs}")

    def __call__(self, groups: list[FilterGroup]) -> Iterator[Round]:
        for k in range(1, self.n + 1):
            yield Round(share=k / self.n, epochs=self.epochs if k < self.n else None)


@dataclass
class LayerByLayer:
    """One candidate group after the other, from the input to the output; `epochs` of recovery between them."""

    epochs: int = 1

    def __call__(self, groups: list[FilterGroup]) -> Iterator[Round]:
        for k, group in enumerate(groups):
            yield Round(groups=(group.name,), epochs=self.epochs if k + 1 < len(groups) else None)
