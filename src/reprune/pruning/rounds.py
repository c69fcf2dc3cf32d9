"""When filters go: all at once, in steps with a rising share, or layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from reprune.errors import UserError
from reprune.structure.groups import Plan


@dataclass(frozen=True)
class Round:
    """One prune-and-recover turn."""

    share: float = 1.0                          # of the whole reduction that is reached when this round ends
    counts: Mapping[str, int] | None = None     # filters to remove, per group; None = the allocation says
    epochs: int | None = None                   # of recovery after it; None = the recipe's
    batches: int | None = None                  # of an epoch, then 1: it ends early, and counts as none

    @property
    def last(self) -> bool:
        return self.epochs is None


@dataclass
class OneShot:
    """Everything at once, then recover."""

    def __call__(self, plan: Callable[[], Plan]) -> Iterator[Round]:
        yield Round()


@dataclass
class Steps:
    """n rounds, each taking an equal share; `epochs` of recovery between them, or so many `batches`; the recipe's after
    the last.

    >>> [round.share for round in Steps(n=4)(dict)]
    [0.25, 0.5, 0.75, 1.0]
    """

    n: int = 5
    epochs: int = 1
    batches: int | None = None

    def __post_init__(self) -> None:
        if self.n < 1 or self.epochs < 0:
            raise UserError(f"rounds: n must be at least 1 and epochs at least 0, got n={self.n}, epochs={self.epochs}")
        if self.batches is not None and (self.batches < 1 or self.epochs != 1):
            raise UserError("rounds: batches must be at least 1, and epochs 1 with it, got "
                            f"batches={self.batches}, epochs={self.epochs}")

    def __call__(self, plan: Callable[[], Plan]) -> Iterator[Round]:
        for k in range(1, self.n):
            yield Round(share=k / self.n, epochs=self.epochs, batches=self.batches)
        yield Round()


@dataclass
class LayerByLayer:
    """The allocation decides once, on the whole net, how many filters each layer loses; then one layer after the other
    (or `layers` at a time, in the order of the plan) is scored on the net as it is by then, pruned and recovered.

    >>> import torch; keep = torch.tensor([True, False])
    >>> [(dict(round.counts), round.epochs) for round in LayerByLayer()(lambda: {"a": keep, "b": keep[:1], "c": keep})]
    [({'a': 1}, 1), ({'c': 1}, None)]
    """

    epochs: int = 1
    layers: int = 1

    def __post_init__(self) -> None:
        if self.layers < 1 or self.epochs < 0:
            raise UserError("rounds: layers must be at least 1 and epochs at least 0, got "
                            f"layers={self.layers}, epochs={self.epochs}")

    def __call__(self, plan: Callable[[], Plan]) -> Iterator[Round]:
        counts = [(name, int((~keep).sum())) for name, keep in plan().items() if not keep.all()]
        for k in range(0, max(1, len(counts)), self.layers):      # at least one round, which says that nothing would go
            last = k + self.layers >= len(counts)
            yield Round(counts=dict(counts[k: k + self.layers]), epochs=None if last else self.epochs)
