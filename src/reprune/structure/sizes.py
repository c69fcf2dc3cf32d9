"""What code counts: a size that Python reads from a tensor carries the labels it counts (`Count`); a literal becomes an
`Edit`. Where the code may not be rewritten, the channels are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from reprune.structure.labels import PROTECTED, Count, Edit, Ledger, along, varying

FIXED = {"getattr", "dim", "ndimension", "isfloatingpoint", "iscomplex", "iscontiguous", "getdevice", "type", "stride"}


class Sizes(fx.Interpreter):
    """Runs the code of one module. For every node `labels` has as many as its value has elements, or None where it is
    no tensor and counts nothing."""

    ledger: Ledger
    owner: str
    training: bool
    rewritable: bool                                              # may this code be rewritten to fit fewer channels?
    labels: dict[fx.Node, Any]

    def unknown(self, what: str) -> None:
        self.ledger.warn(what)

    def edit(self, node: fx.Node, kind: str, at: int, vectors: tuple[Tensor, ...], **how: Any) -> bool:
        if all(bool((v == PROTECTED).all()) for v in vectors):
            return True
        if not self.rewritable:
            self.ledger.warn_kept(f"the code of {self.owner or type(self.module).__name__} counts channels, and runs "
                                  "differently for other sizes")
        else:
            self.ledger.edit(Edit(self.owner, self.training, node.name, kind, at, vectors, **how))
        return self.rewritable

    def counted(self, node: fx.Node, name: str, value: Any) -> Any:
        """What a number, or a tuple of them, counts."""
        read = [self.labels[n] for n in node.all_input_nodes]
        labels = self.settled(node.all_input_nodes[0]) if read else None
        if name == "size" or name == "getattr" and node.args[1] == "shape":
            if not isinstance(labels, Tensor):
                return None
            counts = tuple(self._count(labels, d) for d in range(labels.dim()))
            return counts if isinstance(value, torch.Size) else counts[node.args[1] if len(node.args) > 1
                                                                        else node.kwargs["dim"]]
        if name in ("numel", "nelement") and isinstance(labels, Tensor):
            return Count(torch.unique(labels), exact=False) if varying(labels) else None
        if name == "getitem" and isinstance(labels, tuple | list | dict) and not isinstance(node.args[1], fx.Node):
            return labels[node.args[1]]
        vectors = [c.vector for c in counts_in(read)]
        if name not in FIXED:                                     # what is computed from a tensor otherwise
            vectors += [torch.unique(each) for each in read if isinstance(each, Tensor)]
        return Count(torch.cat(vectors), exact=False) if vectors else None

    @staticmethod
    def _count(labels: Tensor, dim: int) -> Count | None:
        if dim not in varying(labels):
            return None
        vector = along(labels, dim)
        return Count(torch.unique(labels), exact=False) if vector is None else Count(vector)

    def keep_counts(self, labels: Any) -> None:
        """Numbers that count channels, and go into something that no rewriting follows: those channels stay."""
        for count in counts_in(labels):
            if bool((count.vector != PROTECTED).any()):
                self.ledger.protect(count.vector)

    def _sizes(self, node: fx.Node, dims: int, first: int = 1) -> list:
        """The sizes that a view or an expand names, one per dim: a literal, a `Count`, or None."""
        given = node.args[first:] or (node.kwargs.get("shape", node.kwargs.get("size", node.kwargs.get("sizes"))),)
        if len(given) == 1 and isinstance(given[0], fx.Node) and isinstance(self.env[given[0]], tuple):
            counts = self.labels[given[0]]
            self.keep_counts(None if isinstance(counts, tuple) else counts)
            return list(counts if isinstance(counts, tuple) else self.env[given[0]])
        given = given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given
        return [(self.labels[e] if isinstance(e, fx.Node) else e) for e in given]


def counts_in(labels: Any) -> list[Count]:
    """All counts in nested labels."""
    if isinstance(labels, tuple | list):
        return [c for each in labels for c in counts_in(each)]
    return [labels] if isinstance(labels, Count) else []
