"""What operations do to labels: those that move data (concat, flatten, permute, slice) are simply run on the labels;
arithmetic unites the labels of what it adds up or multiplies. `RULES` is the table of all that are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reprune.structure.functional import Functional
from reprune.structure.labels import along, thin, varying

POINTWISE = {"relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh",
             "tanh", "sigmoid", "hardsigmoid", "softplus", "logsigmoid", "softsign", "tanhshrink", "hardshrink",
             "softshrink", "threshold", "rrelu", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout",
             "alpha_dropout", "feature_alpha_dropout", "stochastic_depth", "identity", "clone", "contiguous", "detach",
             "float", "half", "double", "bfloat16", "to", "type", "type_as", "cpu", "neg", "abs", "exp", "log", "log1p",
             "erf", "sin", "cos", "sign", "floor", "ceil", "round", "sqrt", "rsqrt", "reciprocal", "square", "pow",
             "clamp", "clamp_min", "clamp_max", "zeros_like", "ones_like", "empty_like", "rand_like", "randn_like",
             "full_like", "bernoulli", "nan_to_num", "requires_grad"}
ARITHMETIC = {"add", "iadd", "radd", "sub", "isub", "rsub", "mul", "imul", "rmul", "multiply", "div", "truediv",
              "itruediv", "divide", "maximum", "minimum", "where", "lerp", "addcmul", "addcdiv", "masked_fill", "eq",
              "ne", "lt", "gt", "le", "ge", "logical_and", "logical_or", "logical_not", "expand_as", "copy"}
LOCAL = {f"{kind}{n}d" for n in (1, 2, 3) for kind in (
    "max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool", "zero_pad", "reflection_pad",
    "replication_pad", "constant_pad", "circular_pad")} | {
    f"max_pool{n}d_with_indices" for n in (1, 2, 3)} | {"upsample", "interpolate", "upsamplingnearest2d",
                                                        "upsamplingbilinear2d"}
MOVES = {"permute", "transpose", "swapaxes", "swapdims", "unsqueeze", "squeeze", "flip", "movedim", "t", "narrow",
         "select", "unbind", "roll", "repeat_interleave", "tile", "repeat", "atleast_3d"}
REDUCTIONS = {"mean", "sum", "amax", "amin", "std", "var", "norm", "softmax", "log_softmax", "normalize", "argmax",
              "logsumexp", "prod", "max", "min", "cumsum"}

MAKERS = {"zeros", "ones", "empty", "full", "rand", "randn"}


def canonical(name: str) -> str:
    """One name for the function, the method, the in-place form and the module of an operation.

    >>> canonical("adaptive_avg_pool2d"), canonical("AdaptiveAvgPool2d"), canonical("relu_"), canonical("__add__")
    ('adaptiveavgpool2d', 'adaptiveavgpool2d', 'relu', 'add')
    """
    return name.strip("_").replace("_", "").lower()


def operation_name(node: fx.Node) -> str:
    """Of a function or a method."""
    return canonical(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""))


RULES = {canonical(name): rule for rule, names in {
    "pointwise": POINTWISE | ARITHMETIC, "local": LOCAL, "moved": MOVES, "reduced": REDUCTIONS,
    "joined": {"cat", "concat", "concatenate"}, "stacked": {"stack"}, "reshaped": {"view", "reshape", "unflatten"},
    "flattened": {"flatten"}, "likened": {"view_as", "reshape_as"}, "expanded": {"expand", "broadcast_to"},
    "made": MAKERS | {"new_zeros", "new_ones", "new_full", "new_empty"}, "split": {"chunk", "split", "tensor_split"},
    "indexed": {"getitem"}, "written": {"setitem"}, "padded": {"pad"}, "gated": {"glu"},
    "weighted": {"conv1d", "conv2d", "conv3d", "linear"}, "normed": {"batch_norm", "instance_norm", "prelu"},
    "layer_normed": {"layer_norm"}, "group_normed": {"group_norm"}, "pixel_shuffled": {"pixel_shuffle"},
    "pixel_unshuffled": {"pixel_unshuffle"}, "grouped": {"channel_shuffle"},
}.items() for name in names}
SIZED = {"reshaped", "expanded", "made", "split", "indexed", "weighted"}          # those that may count channels
LOCAL_NAMES = {canonical(name) for name in LOCAL}


@dataclass(frozen=True)
class Operation:
    """One call: its arguments, with labels in place of tensors, and what it returned."""

    node: fx.Node
    args: tuple
    kwargs: dict
    value: Any

    def arg(self, at: int, name: str, default: Any = None) -> Any:
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    @property
    def labels(self) -> Any:
        """Of the tensor that it works on."""
        return self.args[0] if self.args else self.kwargs.get("input", self.kwargs.get("tensors"))


class Operations(Functional):
    """The rules: what an operation makes of the labels of its arguments; None: the channels that reach it are kept."""

    def operation(self, name: str, op: Operation) -> Any:
        if isinstance(op.node.target, type) and issubclass(op.node.target, tuple):      # a named tuple, of logits say
            return op.args
        if name not in RULES:
            return self.unknown(name if op.node.op == "call_module" else getattr(
                op.node.target, "__name__", str(op.node.target)).strip("_"))
        self.name = name
        try:
            return getattr(self, f"_{RULES[name]}")(op)
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError):
            return self.unknown(f"{name} as {self.owner or type(self.module).__name__} calls it")

    def _pointwise(self, op: Operation) -> Tensor | None:
        """Adding or multiplying couples channels; a size-1 channel that is broadcast over all C is only kept."""
        given = [*op.args, *op.kwargs.values()]
        nodes = [*op.node.args, *op.node.kwargs.values()]
        own = [n for n in nodes if isinstance(n, fx.Node) and self.is_wide(n)]
        operands = [o for o, n in zip(given, nodes, strict=False) if isinstance(o, Tensor) and n not in own]
        if self.name == "typeas" or not operands:
            operands = [o for o in given if isinstance(o, Tensor)][:1]
        if "add" in self.name and len(operands) > 1:
            self.ledger.added += [torch.unique(thin(o)) for o in operands]
        wide = [o for o in operands if list(o.shape) == list(op.value.shape)] or operands
        result = max(wide, key=lambda o: len(varying(o)))
        if list(result.shape) != list(op.value.shape):
            result = result.expand(op.value.shape)
        for other in operands:
            if other is not result:
                self._couple(result, other)
        for node in own:
            self._couple_own(result, node)
        return result

    def is_wide(self, node: fx.Node) -> bool:
        """A parameter or buffer with more than one dim: which of them is that of channels depends on its use."""
        return node.op == "get_attr" and sum(n > 1 for n in self.env[node].shape) > 1

    def _couple_own(self, result: Tensor, node: fx.Node) -> None:
        tensor, dims = self.env[node], varying(result)
        at = [d - result.dim() + tensor.dim() for d in dims]
        if len(at) == 1 and at[0] >= 0 and tensor.shape[at[0]] == result.shape[dims[0]] and self.own(node.target):
            self.ledger.unite(along(result, dims[0]), self.axis_of(node, at[0], tensor))
        else:
            self.ledger.protect(result)

    def _couple(self, result: Tensor, other: Tensor) -> None:
        offset = result.dim() - other.dim()
        if any(d < offset or other.shape[d - offset] == 1 for d in varying(result)):
            self.ledger.protect(other)
        else:
            self.ledger.unite(result, other)

    def _local(self, op: Operation) -> Any:
        """Pooling, padding and resizing over the last dims: a channel stays what it is."""
        n = next((int(c) for c in self.name if c in "123" and f"{c}d" in self.name), op.labels.dim() - 2)
        if set(varying(op.labels)) & set(range(op.labels.dim() - n, op.labels.dim())):
            return None
        labels = op.labels[(..., *[slice(0, 1)] * n)]
        return _each(op.value, lambda v: labels.expand(v.shape))

    def _moved(self, op: Operation) -> Any:
        if self.name in ("narrow", "select", "roll", "unbind"):
            dims = op.arg(2, "dims", range(op.labels.dim())) if self.name == "roll" else op.arg(1, "dim", 0)
            if {d % op.labels.dim() for d in ([dims] if isinstance(dims, int) else dims)} & set(varying(op.labels)):
                return self.unknown(f"{self.name} of channels")
        if op.node.op == "call_function":
            return op.node.target(*op.args, **op.kwargs)
        return getattr(op.labels, op.node.target if op.node.op == "call_method" else self.name)(
            *op.args[1:], **op.kwargs)

    def _reduced(self, op: Operation) -> Any:
        dims = op.arg(1, "dim", op.arg(1, "axis", 1 if self.name == "normalize" else None))
        if self.name in ("norm", "normalize") and op.node.op != "call_module":
            dims = op.arg(2, "dim", 1 if self.name == "normalize" else None)
        if isinstance(dims, Tensor):                              # max of two tensors
            return self._pointwise(op)
        labels = op.labels
        if dims is None or not isinstance(labels, Tensor):
            return None
        dims = {d % labels.dim() for d in ([dims] if isinstance(dims, int) else dims)}
        if dims & set(varying(labels)):
            return self.unknown("cumsum") if self.name == "cumsum" else None      # a mean over channels needs all
        kept = labels[tuple(slice(0, 1) if d in dims else slice(None) for d in range(labels.dim()))]
        return _each(op.value, lambda v: kept.reshape(v.shape) if v.numel() == kept.numel() else kept.expand(v.shape))

    def _joined(self, op: Operation) -> Tensor | None:
        """Side by side along the channels; over any other dim the channels are the same ones."""
        dim = op.arg(1, "dim", 0) % op.value.dim()
        parts = [p for p in op.labels if p.dim() == op.value.dim()]
        if all(set(varying(p)) <= {dim} for p in parts):
            return torch.cat(parts, dim)
        return self._same([p.narrow(dim, 0, 1) for p in parts if p.shape[dim]], op) \
            if all(dim not in varying(p) for p in parts) else None

    def _stacked(self, op: Operation) -> Tensor:
        return self._same([p.unsqueeze(op.arg(1, "dim", 0) % op.value.dim()) for p in op.labels], op)

    def _same(self, parts: list[Tensor], op: Operation) -> Tensor:
        first = max(parts, key=lambda p: len(varying(p)))
        for part in parts:
            self._couple(first, part)
        return first.expand(op.value.shape)

    def _padded(self, op: Operation) -> Tensor | None:
        """Spatial padding keeps a channel's label; padded channels are new, free to go with what they are added to."""
        vector = along(op.labels, 1) if op.labels.dim() > 2 else None
        if vector is None:
            return None
        widths = list(op.arg(1, "pad", ()))
        widths += [0] * (2 * op.labels.dim() - len(widths))
        at = 2 * (op.labels.dim() - 2)                            # widths count from the last dim back
        front, back = widths[at:at + 2]
        if front < 0 or back < 0 or any(widths[at + 2:]):
            return self.unknown("a pad that crops channels or adds images")
        if front or back:
            before, after = self.ledger.fresh(front), self.ledger.fresh(back)
            vector = torch.cat([before, vector, after])
            if not self.edit(op.node, "pad", at, (before, after)):
                return None
        return vector.view(1, -1, *[1] * (op.value.dim() - 2)).expand(op.value.shape)

    def _gated(self, op: Operation) -> Tensor:
        first, second = op.labels.chunk(2, op.arg(1, "dim", -1))
        self.ledger.unite(first, second)
        return first


def _each(value: Any, fn: Any) -> Any:
    return fn(value) if isinstance(value, Tensor) else tuple(fn(v) for v in value)
