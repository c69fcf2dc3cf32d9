"""What becomes of labels where code takes parts of a tensor: splits, slices, indices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reprune.structure.labels import along, varying
from reprune.structure.views import Views


class Parts(Views):
    """Where a part begins and ends counts channels: in code that is rewritten, or they are kept."""

    def _split(self, op: Any) -> tuple | None:
        dim = op.arg(2, "dim", 0) % op.labels.dim()
        parts = torch.split(op.labels, [v.shape[dim] for v in op.value], dim)
        if dim not in varying(op.labels):
            return parts
        vectors = tuple(along(p, dim) for p in parts)
        return None if any(v is None for v in vectors) or not self.edit(op.node, "split", dim, vectors) else parts

    def _indexed(self, op: Any) -> Any:
        labels, index = op.labels, op.args[1]
        if not isinstance(labels, Tensor):                        # one part of a split
            return labels[index]
        index = index if isinstance(index, tuple) else (index,)
        order = next((d for d, i in enumerate(index) if isinstance(i, list)), None)
        if order is not None and all(i == slice(None) for i in (*index[:order], *index[order + 1:])):
            return self._ordered(op, order, index[order])
        if not all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in index):
            return self.unknown("indexing with tensors")
        real = [i for i in index if i is not None and i is not Ellipsis]
        at = index.index(Ellipsis) if Ellipsis in index else len(index)
        before = [i for i in index[:at] if i is not None]
        skipped = labels.dim() - len(real)                        # dims an ellipsis (or nothing) stands for
        full = [*before, *[slice(None)] * skipped, *real[len(before):]]
        cut = [d for d in varying(labels) if full[d] != slice(None)]
        if not cut:
            return labels[index]
        dim = cut[0]
        vector, part = along(labels, dim), full[dim]
        if len(cut) > 1 or vector is None or isinstance(part, int) or part.step not in (None, 1):
            return self.unknown("indexing that picks single channels")
        start, stop, _ = part.indices(len(vector))
        where = [i for i, e in enumerate(index) if e is not None and e is not Ellipsis][
            dim if dim < len(before) else dim - skipped]
        return labels[index] if self.edit(op.node, "slice", where, (vector[:start], vector[start:stop])) else None

    def _ordered(self, op: Any, dim: int, order: list[int]) -> Tensor | None:
        """x[:, [0, 2, 1]], what is left of a shuffle after surgery"""
        vector = along(op.labels, dim)
        if vector is None or dim not in varying(op.labels):
            return None if vector is None else op.labels[op.args[1]]
        vectors, source = (vector, vector[order]), op.node.all_input_nodes[0].name
        done = self.edit(op.node, "shuffle", dim, vectors, source=source, order=torch.tensor(order))
        return op.labels[op.args[1]] if done else None

    def _written(self, op: Any) -> None:
        """x[index] = y"""
        picked = self._indexed(op)
        if picked is None:
            self.ledger.protect([op.labels, op.args[2]])
        elif isinstance(op.args[2], Tensor):
            self._couple(picked, op.args[2])
