"""What operations do to labels: those that move data (concat, flatten, permute, slice) are simply run on the labels;
arithmetic unites the labels of what it adds up or multiplies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from reprune.structure.labels import Edit, Ledger, along, varying

POINTWISE = {"relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh",
             "tanh", "sigmoid", "hardsigmoid", "softplus", "logsigmoid", "softsign", "tanhshrink", "dropout",
             "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "stochastic_depth", "identity", "clone",
             "contiguous", "detach", "float", "half", "bfloat16", "to", "type", "neg", "abs", "exp", "sqrt", "square",
             "pow", "clamp"}
LOCAL = {"max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "lp_pool2d",
         "upsample", "interpolate", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
         "adaptive_max_pool2d", "zeropad2d", "reflectionpad2d", "replicationpad2d"}
ARITHMETIC = {"add", "iadd", "radd", "sub", "isub", "rsub", "mul", "imul", "rmul", "div", "truediv", "itruediv",
              "maximum", "minimum"}
MOVES = {"cat", "concat", "flatten", "permute", "transpose", "unsqueeze", "squeeze", "stack", "flip", "movedim"}
REDUCTIONS = {"mean", "sum", "amax", "amin"}


class Operations(fx.Interpreter):
    """Runs a net. For every node `labels` has as many as its value has elements, or None where it is no tensor."""

    def __init__(self, graph: fx.GraphModule, ledger: Ledger, rewritable: bool):
        super().__init__(graph)
        self.ledger = ledger
        self.rewritable = rewritable                              # may forward code be rewritten to fit fewer channels?
        self.labels: dict[fx.Node, Any] = {}

    def unknown(self, what: str) -> None:
        self.ledger.warn(what)

    def operation(self, node: fx.Node, name: str, value: Any) -> Any:
        """The labels of its value; None: not known, the channels that reach it are kept."""
        args = fx.node.map_arg(node.args, self._label_or_value)
        kwargs = fx.node.map_arg(node.kwargs, self._label_or_value)
        labels = self.labels[node.all_input_nodes[0]]
        if name in LOCAL:
            vector = along(labels, 1)
            return None if vector is None else vector.view(1, -1, *[1] * (value.dim() - 2)).expand(value.shape)
        if name in ARITHMETIC | POINTWISE:                        # pow and clamp may take a second tensor
            operands = [self.labels[n] for n in node.all_input_nodes if self.labels[n] is not None]
            if "add" in name and len(operands) > 1:
                self.ledger.added += [torch.unique(o) for o in operands]
            return self._arithmetic(operands, value)
        if name in MOVES:
            return node.target(*args, **kwargs) if callable(node.target) else self._moved(node, name, args, kwargs)
        if name in REDUCTIONS:
            return self._reduction(labels, args, kwargs, value)
        if name in ("view", "reshape"):
            return self._reshape(node, labels, value)
        if name in ("chunk", "split"):
            return self._split(node, labels, value, args, kwargs)
        if name == "getitem":
            return self._getitem(node, labels, args[1])
        if name == "pad":
            return self._pad(node, labels, value, args, kwargs)
        return None if name.endswith("Outputs") else self.unknown(name)      # named tuple of logits of several heads

    def _moved(self, node: fx.Node, name: str, args: tuple, kwargs: dict) -> Tensor:
        if node.op == "call_module":                              # nn.Flatten
            module = self.fetch_attr(node.target)
            return args[0].flatten(module.start_dim, module.end_dim)
        return getattr(args[0], name)(*args[1:], **kwargs)

    def _label_or_value(self, node: fx.Node) -> Any:
        labels = self.labels[node]
        return self.env[node] if labels is None else labels

    def _arithmetic(self, operands: list[Tensor], value: Tensor) -> Tensor:
        """Adding or multiplying couples channels; a size-1 channel that is broadcast over all C is only kept."""
        wide = [o for o in operands if list(o.shape) == list(value.shape)] or operands[:1]
        result = wide[0]
        for other in operands:
            if other is result:
                continue
            offset = result.dim() - other.dim()
            spread = [d for d in varying(result) if d < offset or other.shape[d - offset] == 1]
            if spread:
                self.ledger.protect(other)
            else:
                self.ledger.unite(result, other)
        return result.expand(value.shape)

    def _reduction(self, labels: Tensor, args: tuple, kwargs: dict, value: Tensor) -> Tensor | None:
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if dims is None:
            return None
        dims = [d % labels.dim() for d in ([dims] if isinstance(dims, int) else dims)]
        if set(dims) & set(varying(labels)):
            return None                                           # a mean over channels needs all of them
        return labels.amax(dims, keepdim=value.dim() == labels.dim())

    def _reshape(self, node: fx.Node, labels: Tensor, value: Tensor) -> Tensor | None:
        moved = labels.reshape(value.shape)
        changing = varying(moved)
        if not changing:
            return moved
        if len(changing) > 1:                                     # channels spread over two dims: a shuffle
            return self.unknown("a view that splits channels")
        dim = changing[0]
        sizes = node.args[1:] if len(node.args) > 1 else (node.kwargs.get("shape", ()),)
        sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
        if not (dim < len(sizes) and isinstance(sizes[dim], int)):
            return moved                                          # a size computed from the tensor follows by itself
        if sizes[dim] == -1:                                      # -1 follows too, if every other size stays
            return moved
        return self._edit(Edit(node.name, "reshape", dim, (along(moved, dim),)), moved)

    def _edit(self, edit: Edit, labels: Any) -> Any:
        if not self.rewritable:
            return None
        self.ledger.edits.append(edit)
        return labels

    def _split(self, node: fx.Node, labels: Tensor, value: tuple, args: tuple, kwargs: dict) -> tuple | None:
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0) % labels.dim()
        parts = torch.split(labels, [v.shape[dim] for v in value], dim)
        if dim not in varying(labels):
            return parts
        vectors = tuple(along(p, dim) for p in parts)
        return None if None in [v if v is None else 0 for v in vectors] else self._edit(
            Edit(node.name, "split", dim, vectors), parts)

    def _getitem(self, node: fx.Node, labels: Any, index: Any) -> Any:
        if isinstance(labels, tuple | list):                      # one part of a split
            return labels[index]
        index = index if isinstance(index, tuple) else (index,)
        if not all(i is Ellipsis or isinstance(i, int | slice) for i in index):
            return self.unknown("indexing with tensors or None")
        at = index.index(Ellipsis) if Ellipsis in index else len(index)
        skipped = labels.dim() - len(index) + (Ellipsis in index)         # dims an ellipsis (or nothing) stands for
        full = [*index[:at], *[slice(None)] * skipped, *index[at + 1:]]
        cut = [d for d in varying(labels) if full[d] != slice(None)]
        picked = labels[tuple(index)]
        if not cut:
            return picked
        dim = cut[0]
        vector, part = along(labels, dim), full[dim]
        if len(cut) > 1 or vector is None or isinstance(part, int) or part.step not in (None, 1):
            return self.unknown("indexing that picks single channels")
        start, stop, _ = part.indices(len(vector))
        where = dim if dim < at else dim - skipped + (Ellipsis in index)
        return self._edit(Edit(node.name, "slice", where, (vector[:start], vector[start:stop])), picked)

    def _pad(self, node: fx.Node, labels: Tensor, value: Tensor, args: tuple, kwargs: dict) -> Tensor | None:
        """Spatial padding keeps a channel's label; padded channels are new, free to go with what they are added to."""
        vector = along(labels, 1)
        if vector is None or labels.dim() < 3:
            return None
        widths = list(kwargs.get("pad", args[1] if len(args) > 1 else ()))
        widths += [0] * (2 * labels.dim() - len(widths))
        at = 2 * (labels.dim() - 2)                               # widths count from the last dim back
        front, back = widths[at:at + 2]
        if front < 0 or back < 0 or any(widths[at + 2:]):
            return self.unknown("a pad that crops channels or adds images")
        if front or back:
            before, after = self.ledger.fresh(front), self.ledger.fresh(back)
            vector = torch.cat([before, vector, after])
            if self._edit(Edit(node.name, "pad", at, (before, after)), True) is None:
                return None
        return vector.view(1, -1, *[1] * (value.dim() - 2)).expand(value.shape)
