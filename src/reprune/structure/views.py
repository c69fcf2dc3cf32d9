"""What becomes of labels where code gives a tensor another shape: views, shuffles, and dims that are expanded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from reprune.structure.labels import PROTECTED, Count, Spread, along, varying
from reprune.structure.sizes import Sizes

STEPS = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "contiguous", "clone", "view", "reshape", "flatten"}


class Views(Sizes):
    """Views of channels are followed in any order; one that spreads them over two dims is a shuffle, if they come
    together again, and otherwise makes as many of each part go."""

    def _reshaped(self, op: Any) -> Any:
        node, dims = op.node, op.value.dim()
        if op.node.op == "call_module":                           # nn.Unflatten: its sizes are literals
            sizes = None
        elif self.name == "unflatten":
            at = op.arg(1, "dim") % op.labels.dim()
            inner = self._sizes(node, dims, 2)
            sizes = [None] * at + inner + [None] * (dims - at - len(inner))
        else:
            sizes = self._sizes(node, dims)
        if sizes and not all(s is None or isinstance(s, int | Count) for s in sizes):
            return op.labels                                      # view(dtype)
        moved = op.labels.reshape(op.value.shape)
        if len(varying(moved)) > 1:                               # channels spread over two dims
            changing = varying(op.labels)
            vector = along(op.labels, changing[0]) if len(changing) == 1 else None
            if vector is None or sizes is None or self.name == "unflatten":
                return self.unknown("a view that splits channels")
            shape = [-1 if d == changing[0] else 1 for d in range(op.labels.dim())]
            positions = torch.arange(len(vector)).view(shape).expand(op.labels.shape).reshape(op.value.shape)
            return Spread(node.all_input_nodes[0], changing[0], vector, positions, ((node, sizes, positions),))
        if sizes is None:
            return moved if varying(moved) == varying(op.labels) else None
        return self._fitted(node, moved, sizes)

    def _flattened(self, op: Any) -> Tensor:
        return op.labels.flatten(op.arg(1, "start_dim", 1 if op.node.op == "call_module" else 0),
                                 op.arg(2, "end_dim", -1))

    def _likened(self, op: Any) -> Tensor | None:
        moved, other = op.labels.reshape(op.value.shape), op.arg(1, "other")
        return self._fitted(op.node, moved, [self._count(other, d) for d in range(other.dim())])

    def _fitted(self, node: fx.Node, moved: Tensor, sizes: list) -> Tensor | None:
        """Sees to it that the sizes will fit fewer channels."""
        changing = varying(moved)
        for dim, size in enumerate(sizes):
            if dim not in changing:
                self.keep_counts(size)
            elif isinstance(size, Count) or isinstance(size, int) and size != -1:     # all others follow by themselves
                vector = along(moved, dim)
                if vector is None:
                    return None
                if isinstance(size, Count) and size.exact and len(size.vector) == len(vector):
                    self.ledger.unite(size.vector, vector)
                elif (dim or isinstance(size, int)) and not self.edit(node, "sizes", dim, (vector,)):
                    return None
        return moved

    def step(self, name: str, op: Any) -> Any:
        """A shuffle goes on, or ends: what a view has spread is put together again in another order."""
        spread: Spread = op.labels
        if name in ("view", "reshape", "flatten"):
            moved = spread.positions.reshape(op.value.shape)
            sizes = [None] * op.value.dim() if name == "flatten" else self._sizes(op.node, op.value.dim())
            chain = (*spread.chain, (op.node, sizes, moved))
        else:
            function = op.node.target if op.node.op == "call_function" else getattr(torch.Tensor, op.node.target)
            moved, chain = function(spread.positions, *op.args[1:], **op.kwargs), spread.chain
        dims = varying(moved)
        if len(dims) > 1:
            return Spread(spread.source, spread.dim, spread.vector, moved, chain)
        order = along(moved, dims[0])
        in_place = list(self.labels[spread.source].shape) == list(op.value.shape) and dims == [spread.dim]
        if in_place and len(order) == len(spread.vector):
            vector = spread.vector[order]
            if self.edit(op.node, "shuffle", spread.dim, (spread.vector, vector), source=spread.source.name,
                         order=order):
                return vector.view([-1 if d == dims[0] else 1 for d in range(moved.dim())]).expand(moved.shape)
        return self._settle(Spread(spread.source, spread.dim, spread.vector, moved, chain))

    def settled(self, node: fx.Node) -> Any:
        """The labels of a node; of channels that are still spread: as many of each part go."""
        if isinstance(self.labels[node], Spread):
            spread = self.labels[node]
            labels = self._settle(spread)
            if labels is None:
                self.ledger.protect(spread.vector)
                labels = torch.full((), PROTECTED).expand(spread.positions.shape)
            self.labels[node] = labels
        return self.labels[node]

    def _settle(self, spread: Spread) -> Tensor | None:
        first = spread.chain[0][2]
        dims = varying(first)
        keep = max(dims, key=lambda d: (first.shape[d], d))       # one channel for all that differ in the other dims
        one = first[tuple(slice(0, 1) if d in dims and d != keep else slice(None) for d in range(first.dim()))]
        stands = torch.empty(len(spread.vector), dtype=torch.long)
        stands[first.flatten()] = one.expand(first.shape).flatten()
        vector = spread.vector[stands]
        self.ledger.unite(spread.vector, vector)
        for node, sizes, positions in spread.chain:
            if len(varying(vector[positions])) > 1 or self._fitted(node, vector[positions], sizes) is None:
                return None
        return vector[spread.positions]

    def _expanded(self, op: Any) -> Tensor | None:
        return self._grown(op, op.labels, self._sizes(op.node, op.value.dim()))

    def _made(self, op: Any) -> Tensor | None:
        return self._grown(op, torch.full([1] * op.value.dim(), PROTECTED), self._sizes(
            op.node, op.value.dim(), int(op.node.op == "call_method")))

    def _grown(self, op: Any, labels: Tensor, sizes: list) -> Tensor | None:
        """A dim of one value becomes one of as many channels as another tensor has, or as the code says."""
        labels = labels[(None,) * (op.value.dim() - labels.dim())]
        for dim, size in enumerate(sizes):
            grows = labels.shape[dim] == 1 and op.value.shape[dim] > 1
            if dim in varying(labels):
                if self._fitted(op.node, labels, [size if d == dim else None for d in range(labels.dim())]) is None:
                    return None
            elif grows and (isinstance(size, Count) and size.exact or isinstance(size, int) and dim == 1):
                vector = size.vector if isinstance(size, Count) else self.ledger.fresh(size)
                self.ledger.protect(labels)
                if varying(labels) or isinstance(size, int) and not self.edit(op.node, "sizes", dim, (vector,)):
                    return None
                labels = vector.view([-1 if d == dim else 1 for d in range(labels.dim())])
            else:
                self.keep_counts(size)
        return labels.expand(op.value.shape)
