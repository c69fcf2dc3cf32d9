"""What becomes of labels in functions that do what layers do, with parameters of the net's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reprune.structure.labels import Call, along, varying
from reprune.structure.parts import Parts


class Functional(Parts):
    """conv2d, linear, batch_norm, group_norm, layer_norm and pixel_shuffle."""

    def _normed(self, op: Any) -> Tensor | None:
        vector = along(op.labels, 1) if op.labels.dim() > 1 else None
        if vector is None:
            return None
        for own in [*op.args[1:], *op.kwargs.values()]:
            if isinstance(own, Tensor) and own.numel() > 1:
                self.ledger.unite(vector, own.flatten())
        return op.labels

    def _layer_normed(self, op: Any) -> Tensor | None:
        shape = op.arg(1, "normalized_shape")
        n = 1 if isinstance(shape, int) else len(shape)
        mixed = set(varying(op.labels)) & set(range(op.labels.dim() - n, op.labels.dim()))
        return self.unknown("a layer norm over channels") if mixed else op.labels

    def _group_normed(self, op: Any) -> Tensor | None:
        labels = self.norm_groups(op.labels, op.arg(1, "num_groups"))
        first = None if labels is None else along(labels, 1).view(op.arg(1, "num_groups"), -1)[:, 0]
        return labels if labels is not None and self.edit(op.node, "groups", 1, (first,)) else None

    def norm_groups(self, labels: Tensor, groups: int) -> Tensor | None:
        """A normalised group goes as a whole, and the others are what they were."""
        vector = along(labels, 1)
        if vector is None or groups == 1 and len(vector) > 1:
            return self.unknown("a group norm over all channels") if vector is not None and varying(labels) else None
        blocks = vector.view(groups, -1)
        self.ledger.unite(blocks[:, :1], blocks)
        return labels

    def _weighted(self, op: Any) -> Tensor | None:
        """A conv or linear function with a weight of the net's own, or one that goes with the channels it reads."""
        x, weight, linear = op.labels, op.arg(1, "weight"), self.name == "linear"
        vector, groups = along(x, x.dim() - 1 if linear else 1), 1 if linear else op.arg(6, "groups", 1)
        node = op.node.args[1] if len(op.node.args) > 1 else op.node.kwargs["weight"]
        own = node.op == "get_attr" and self.own(node.target)
        if vector is None or not own and (groups == 1 or along(weight, 0) is None):
            return self.unknown(f"{self.name} with a weight that is computed") if not own else None
        out = self.axis_of(node, 0, weight) if own else along(weight, 0)
        if own and not self.training:
            self.ledger.calls.append(Call(own, op.value.numel() // len(out)))
        if groups == 1:
            self.ledger.unite(self.axis_of(node, 1, weight), vector)
        else:
            blocks = torch.cat([vector.view(groups, -1), out.view(groups, -1)], 1)
            self.ledger.unite(blocks[:, :1], blocks)
            if isinstance(op.arg(6, "groups"), int) and not self.edit(op.node, "groups", 6, (blocks[:, 0],)):
                return None
        if isinstance(bias := op.arg(2, "bias"), Tensor):
            self.ledger.unite(out, bias)
        return out.view([1] * (op.value.dim() - 1) + [-1] if linear else [1, -1] + [1] * (op.value.dim() - 2)
                        ).expand(op.value.shape)

    def _pixel_shuffled(self, op: Any) -> Tensor | None:
        vector, r = along(op.labels, 1), op.arg(1, "upscale_factor")
        if vector is None:
            return None
        blocks = vector.view(-1, r * r)
        self.ledger.unite(blocks[:, :1], blocks)
        return blocks[:, 0].view(1, -1, 1, 1).expand(op.value.shape)

    def _pixel_unshuffled(self, op: Any) -> Tensor | None:
        vector, r = along(op.labels, 1), op.arg(1, "downscale_factor")
        return None if vector is None else vector.repeat_interleave(r * r).view(1, -1, 1, 1).expand(op.value.shape)

    def _grouped(self, op: Any) -> Tensor | None:
        vector, groups = along(op.labels, 1), op.arg(1, "groups")
        if vector is None:
            return None
        blocks = vector.view(groups, -1)                          # as many of each go
        self.ledger.unite(blocks[:1], blocks)
        return blocks.t().reshape(1, -1, *[1] * (op.value.dim() - 2)).expand(op.value.shape)
