"""Labels: one integer per channel, and the ledger of which labels must live or die together.

Label 0 is *protected*: whatever is united with it is never removed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

PROTECTED = 0

@dataclass(frozen=True)
class Call:
    """One call of a conv or linear layer; `positions`: how often its filters are applied to one sample (a transposed
    conv: how often its inputs are read)."""

    module: str
    positions: int


@dataclass(frozen=True)
class Edit:
    """A literal in the forward code that counts channels; `vectors` are the labels of the channels it counts."""

    owner: str                   # the module whose forward code it stands in
    training: bool               # in the code that runs in training mode
    node: str
    kind: str                    # "pad" | "split" | "slice" | "sizes" | "groups" | "shuffle"
    at: int                      # where in its list of widths, dims, indices or sizes the literal stands
    vectors: tuple[Tensor, ...]
    source: str = ""             # of a shuffle: the node whose channels it puts into another order,
    order: Tensor | None = None  # and the order

    def map(self, fn: Callable[[Tensor], Tensor]) -> Edit:
        return replace(self, vectors=tuple(fn(v) for v in self.vectors))


@dataclass(frozen=True)
class Count:
    """The label of a whole number that was computed from a number of channels; exact: that is this number."""

    vector: Tensor
    exact: bool = True


@dataclass(frozen=True)
class Spread:
    """The labels of a tensor whose channels a view has spread over two dims: a shuffle, if they come together again."""

    source: fx.Node              # before the view
    dim: int                     # of its channels
    vector: Tensor               # their labels
    positions: Tensor            # which of them stands where
    chain: tuple[tuple[fx.Node, list, Tensor], ...]       # the views so far, with their sizes and positions


def along(labels: Tensor, dim: int) -> Tensor | None:
    """The labels along one dim, or None if they vary along any other.

    >>> along(torch.tensor([[1, 1], [2, 2]]), 0), along(torch.tensor([[1, 1], [2, 3]]), 0)
    (tensor([1, 2]), None)
    """
    rows = thin(labels.movedim(dim, 0))
    flat = rows.reshape(len(rows), -1)
    return flat[:, 0].clone() if bool((flat == flat[:, :1]).all()) else None


def varying(labels: Tensor) -> list[int]:
    """The dims along which the labels differ."""
    few = thin(labels)
    return [d for d in range(labels.dim()) if few.shape[d] > 1 and bool((few != few.narrow(d, 0, 1)).any())]


def thin(labels: Tensor) -> Tensor:
    """Expanded dims (stride 0) hold one value: look at it once."""
    index = tuple(slice(0, 1) if stride == 0 and d else slice(None) for d, stride in enumerate(labels.stride()))
    return labels[index]


@dataclass
class Ledger:
    """What labelled forward passes over one net have found."""

    size: int = 1                                                 # labels issued so far; 0 is PROTECTED
    axes: dict[tuple[str, str], Tensor] = field(default_factory=dict)     # (module, "in" | "out") -> labels [channels]
    filters: set[tuple[str, str]] = field(default_factory=set)    # the axes that are filters of conv and linear layers
    edges: list[tuple[Tensor, Tensor]] = field(default_factory=list)      # labels that live and die together
    added: list[Tensor] = field(default_factory=list)             # labels that were added up with others
    edits: dict[tuple, Edit] = field(default_factory=dict)        # (owner, training, node, at) -> edit
    calls: list[Call] = field(default_factory=list)
    macs: int = 0                                                 # of all conv and linear calls, also of those unknown
    folded: set[str] = field(default_factory=set)                 # layers that compute their weights
    called: set[str] = field(default_factory=set)                 # modules the passes have reached
    warned: set[str] = field(default_factory=set)

    def fresh(self, n: int) -> Tensor:
        """n labels nobody has yet."""
        self.size += n
        return torch.arange(self.size - n, self.size)

    def unite(self, a: Tensor, b: Tensor) -> None:
        """a and b, broadcast against each other, are the same channels."""
        a, b = torch.broadcast_tensors(a, b)
        strides = zip(a.stride(), b.stride(), strict=True)
        once = tuple(slice(0, 1) if sa == sb == 0 else slice(None) for sa, sb in strides)
        pairs = torch.stack([a[once].reshape(-1), b[once].reshape(-1)], 1)
        pairs = torch.unique(pairs[pairs[:, 0] != pairs[:, 1]], dim=0)
        if len(pairs):
            self.edges.append((pairs[:, 0], pairs[:, 1]))

    def protect(self, labels: Any) -> None:
        if isinstance(labels, Tensor):
            self.unite(torch.unique(thin(labels)), torch.tensor([PROTECTED]))
        parts = labels.values() if isinstance(labels, dict) else labels if isinstance(labels, tuple | list) else ()
        for each in parts:
            self.protect(each)

    def axis(self, module: str, axis: str, vector: Tensor) -> None:
        """Notes the labels of one axis of a module; a later call of a shared module unites them with the first's."""
        if (module, axis) in self.axes:
            self.unite(self.axes[module, axis], vector)
        else:
            self.axes[module, axis] = vector

    def edit(self, edit: Edit) -> None:
        """Code that runs twice counts the same channels both times."""
        key = edit.owner, edit.training, edit.node, edit.at
        first = self.edits.setdefault(key, edit)
        for a, b in zip(first.vectors, edit.vectors, strict=True):
            if len(a) == len(b):
                self.unite(a, b)
            else:
                self.protect([a, b])

    def warn(self, what: str) -> None:
        self.warn_kept(f"the tracer does not know {what}")

    def warn_kept(self, why: str) -> None:
        if why not in self.warned:
            self.warned.add(why)
            warnings.warn(f"{why}: the channels that reach it are kept", stacklevel=2)
