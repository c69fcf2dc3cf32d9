"""Runs a net with a label on every channel of every tensor.

Each tensor of the forward pass carries a tensor of labels of its own shape. Operations that move data (concat, flatten,
permute, slice) are simply run on the labels; arithmetic unites the labels it adds up; conv and linear layers read their
input labels and issue fresh ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from reprune.structure.labels import PROTECTED, Call, Edit, Ledger, along, varying

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
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
LEAF_NAMES = {"maxpool": "max_pool", "avgpool": "avg_pool", "adaptiveavgpool": "adaptive_avg_pool",
              "adaptivemaxpool": "adaptive_max_pool", "lppool": "lp_pool", "leakyrelu": "leaky_relu"}


class LabelRun(fx.Interpreter):
    """One labelled forward pass; what it finds goes into the ledger."""

    def __init__(self, graph: fx.GraphModule, net: nn.Module, ledger: Ledger, rewritable: bool = True):
        super().__init__(graph)
        self.net, self.ledger = net, ledger
        self.rewritable = rewritable                              # may forward code be rewritten to fit fewer channels?
        self.labels: dict[fx.Node, Any] = {}
        self._tied = _tied(net)

    def label(self, example: Tensor) -> None:
        with torch.no_grad():
            self.run(example)

    # -- the walk ---------------------------------------------------------------------------------------------------

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        self.labels[node] = self._labels_of(node, value)
        return value

    def _labels_of(self, node: fx.Node, value: Any) -> Any:
        read = [self.labels[n] for n in node.all_input_nodes if self.labels[n] is not None]
        if node.op == "output":
            for labels in read:
                self.ledger.protect(labels)
            return None
        if not _has_tensor(value):
            return None
        if node.op == "get_attr":
            self.ledger.called.add(node.target.rpartition(".")[0])
        if node.op in ("placeholder", "get_attr") or not read:    # images, constants, parameters used directly
            return torch.full((1,), PROTECTED).expand(value.shape) if isinstance(value, Tensor) else None
        if node.op == "call_module":
            labels = self._module(node, value)
        else:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            labels = self._operation(node, name.strip("_").removesuffix("_"), value)
        if labels is None:
            for each in read:
                self.ledger.protect(each)
            labels = _map(value, lambda t: torch.full((1,), PROTECTED).expand(t.shape))
        return labels

    def _unknown(self, what: str) -> None:
        self.ledger.warn(what)

    # -- modules ------------------------------------------------------------------------------------------------------

    def _module(self, node: fx.Node, value: Any) -> Tensor | None:
        module, name = self.fetch_attr(node.target), node.target
        self.ledger.called.add(name)
        labels = self.labels[node.all_input_nodes[0]]
        if type(module) in (*CONVS, nn.Linear):
            return self._filters(name, module, labels, value)
        if type(module) in NORMS:
            vector = along(labels, 1)
            if vector is None or name in self._tied:
                return None
            self.ledger.axis(name, "out", vector)
            return labels
        if type(module) is nn.PReLU:
            if module.num_parameters > 1:
                vector = along(labels, 1)
                if vector is None or name in self._tied:
                    return None
                self.ledger.axis(name, "out", vector)
            return labels
        kind = type(module).__name__.lower()
        for leaf, function in LEAF_NAMES.items():
            kind = kind.replace(leaf, function) if kind.startswith(leaf) else kind
        if kind in POINTWISE | LOCAL | {"flatten"}:
            return self._operation(node, kind, value)
        return self._unknown(type(module).__name__)

    def _filters(self, name: str, module: nn.Module, labels: Tensor, value: Tensor) -> Tensor:
        """Conv and linear layers: input labels are read, the outputs get labels of their own."""
        conv = type(module) in CONVS
        dim, n_out = (1, module.out_channels) if conv else (labels.dim() - 1, module.out_features)
        vector = along(labels, dim)
        if vector is None or name in self._tied or "weight" not in module._parameters:      # tied or parametrised
            self.ledger.protect(labels)
            vector = torch.full((labels.shape[dim],), PROTECTED)
            self.ledger.protect(self.ledger.axes.get((name, "out")))
            out = torch.full((n_out,), PROTECTED)
        else:
            out = self.ledger.axes[name, "out"] if (name, "out") in self.ledger.axes else self.ledger.fresh(n_out)
        self.ledger.axis(name, "in", vector)
        self.ledger.axis(name, "out", out)
        self.ledger.filters.add((name, "out"))
        if conv and module.groups > 1:                            # one conv group goes as a whole
            blocks = torch.cat([vector.view(module.groups, -1), out.view(module.groups, -1)], 1)
            self.ledger.unite(blocks[:, :1], blocks)
        if self.rewritable:
            self.ledger.calls.append(Call(name, value.numel() // n_out))          # of one image
        shape = [1] * value.dim()
        shape[dim if conv else -1] = n_out
        return out.view(shape).expand(value.shape)

    # -- operations -------------------------------------------------------------------------------------------------

    def _operation(self, node: fx.Node, name: str, value: Any) -> Any:
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
        return None if name.endswith("Outputs") else self._unknown(name)      # named tuple of logits of several heads

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
            return self._unknown("a view that splits channels")
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
            return self._unknown("indexing with tensors or None")
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
            return self._unknown("indexing that picks single channels")
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
            return self._unknown("a pad that crops channels or adds images")
        if front or back:
            before, after = self.ledger.fresh(front), self.ledger.fresh(back)
            vector = torch.cat([before, vector, after])
            if self._edit(Edit(node.name, "pad", at, (before, after)), True) is None:
                return None
        return vector.view(1, -1, *[1] * (value.dim() - 2)).expand(value.shape)


def _tied(net: nn.Module) -> set[str]:
    """Modules that share a parameter with another module: cutting one would cut the other elsewhere."""
    owners: dict[int, set[str]] = {}
    for name, module in net.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    return set().union(*[names for names in owners.values() if len(names) > 1])


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_has_tensor, value)))


def _map(value: Any, fn: Callable[[Tensor], Any]) -> Any:
    return fn(value) if isinstance(value, Tensor) else tuple(_map(v, fn) if _has_tensor(v) else None for v in value)
