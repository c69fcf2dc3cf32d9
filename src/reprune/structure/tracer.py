"""Runs a net with a label on every channel of every tensor.

Each tensor of the forward pass carries a tensor of labels of its own shape. Conv and linear layers read their input
labels and issue fresh ones; what all other operations do to them stands in operations.py and what that stands on.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from reprune.errors import UserError
from reprune.structure.examples import arguments, copied, why_not
from reprune.structure.labels import PROTECTED, Call, Ledger, Spread, along
from reprune.structure.layers import NORMS, PRODUCERS, TRANSPOSED, Watch, module_groups, owner
from reprune.structure.operations import MAKERS, RULES, SIZED, Operation, Operations, canonical, operation_name
from reprune.structure.recorder import Book, record
from reprune.structure.values import NotFollowed, has_tensor, mapped, reason
from reprune.structure.views import STEPS

STEPS = {canonical(name) for name in STEPS}


class LabelRun(Operations):
    """One labelled call of one module; what it finds goes into the ledger."""

    def __init__(self, net: nn.Module, path: str, book: Book, ledger: Ledger, training: bool = False,
                 turns: Counter | None = None, tied: set[str] | None = None):
        self.turns = Counter() if turns is None else turns        # how often each module has run
        self.recorded = book.calls[path][self.turns[path]]
        self.turns[path] += 1
        super().__init__(net.get_submodule(path), graph=self.recorded.graph, garbage_collect_values=False)
        self.net, self.owner, self.book, self.ledger, self.training = net, path, book, ledger, training
        self.tied = tied_modules(net) if tied is None else tied
        self.rewritable = book.agree(path) and not self.recorded.asked
        self.labels: dict[fx.Node, Any] = {}
        self.given: tuple[dict, dict] = {}, {}
        self.out: Any = None

    def call(self, args: tuple, kwargs: dict, labels: tuple, kw_labels: dict) -> tuple[Any, Any]:
        """-> what the module returns, and its labels"""
        signature = inspect.signature(type(self.module).forward)
        self.given = tuple(dict(signature.bind(None, *a, **k).arguments)
                           for a, k in ((args, kwargs), (labels, kw_labels)))
        value = super().run()
        for node in self.recorded.asked:                          # another size might take another branch
            self.keep_counts(self.labels[node])
        return value, self.out

    def label(self, args: tuple, kwargs: dict) -> None:
        """Of the whole net."""
        kept = [labels_like(a, lambda t: torch.full((), PROTECTED).expand(t.shape)) for a in (args, kwargs)]
        with torch.no_grad(), Watch() as watch:
            _, out = self.call(args, kwargs, *kept)
        self.ledger.protect(out)
        if not self.training:
            self.ledger.macs = sum(macs for *_, macs in watch.calls)

    def placeholder(self, target: str, args: tuple, kwargs: dict) -> Any:
        return self.given[0].get(target.lstrip("*"), args[0] if args else None)

    def run_node(self, node: fx.Node) -> Any:
        path = f"{self.owner}.{node.target}" if self.owner else node.target
        if node.op == "call_module" and path in self.book.calls:
            inner = LabelRun(self.net, path, self.book, self.ledger, self.training, self.turns, self.tied)
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            value, self.labels[node] = inner.call(args, kwargs, *(
                fx.node.map_arg(a, self.settled) for a in (node.args, node.kwargs)))
            return value
        value = super().run_node(node)
        self.labels[node] = self._labels_of(node, value)
        return value

    def _labels_of(self, node: fx.Node, value: Any) -> Any:
        if node.op == "placeholder":
            return self.given[1].get(node.target.lstrip("*"))
        if node.op == "output":
            self.out = fx.node.map_arg(node.args[0], self.settled)
            return None
        if node.op == "get_attr":
            return self._own_labels(node.target, value)
        name = operation_name(node)
        spread = [n for n in node.all_input_nodes if isinstance(self.labels[n], Spread)]
        if spread and (name not in STEPS or node.op == "call_module" or len(spread) > 1):
            spread = [self.settled(n) for n in spread] and []
        if not has_tensor(value) and name != "setitem":
            return self.counted(node, name, value)
        read = [self.labels[n] for n in node.all_input_nodes if has_tensor(self.env[n])]
        if RULES.get(name) not in SIZED:
            self.keep_counts([self.labels[n] for n in node.all_input_nodes])
        if not read and name not in MAKERS:                       # constants
            return labels_like(value, protected)
        arguments = (fx.node.map_arg(a, self._label_or_value) for a in (node.args, node.kwargs))
        operation = Operation(node, *arguments, value)
        if spread:
            self.name = name
            return self.step(name, operation)
        labels = self._module(node, operation) if node.op == "call_module" else self.operation(name, operation)
        if labels is None and value is not None:
            self.ledger.protect(read)
            labels = labels_like(value, protected)
        return labels

    def _label_or_value(self, node: fx.Node) -> Any:
        return self.labels[node] if has_tensor(self.env[node]) else self.env[node]

    def _own_labels(self, target: str, value: Any) -> Any:
        """A parameter or buffer that the code uses itself: one entry per channel goes with the channels it meets."""
        parent, name = owner(self.module, target)[0], f"{self.owner}.{target}".strip(".").rpartition(".")[0]
        self.ledger.called.add(name)
        if parent is not self.module and isinstance(parent, (*PRODUCERS, *NORMS)):     # a layer that is looked into
            self.tied.add(name)
            for axis in ("in", "out"):
                self.ledger.protect(self.ledger.axes.get((name, axis)))
        wide = [d for d, n in enumerate(value.shape) if n > 1] if isinstance(value, Tensor) else []
        path = self.own(target)
        if len(wide) != 1 or not path:
            return labels_like(value, protected)
        return self._axis(path, str(wide[0]), value.shape[wide[0]]).view(value.shape)

    def own(self, target: str) -> str | None:
        """The name of a tensor that the code uses, from the net's root; None: it is tied, or no state of the net."""
        path = f"{self.owner}.{target}" if self.owner else target
        parent, attr = owner(self.module, target)
        is_state = attr in parent._parameters or attr in parent._buffers
        return path if is_state and path.rpartition(".")[0] not in self.tied else None

    def axis_of(self, node: fx.Node, dim: int, weight: Tensor) -> Tensor:
        return self._axis(self.own(node.target), str(dim), weight.shape[dim])

    def _axis(self, path: str, axis: str, n: int) -> Tensor:
        if (path, axis) not in self.ledger.axes:
            self.ledger.axes[path, axis] = self.ledger.fresh(n)
        return self.ledger.axes[path, axis]

    def _module(self, node: fx.Node, op: Operation) -> Any:
        module, name = self.fetch_attr(node.target), f"{self.owner}.{node.target}".strip(".")
        self.ledger.called |= {f"{name}.{inner}".strip(".") for inner, _ in module.named_modules()}
        if name in self.book.closed:
            return self._closed(name, module, op)
        if isinstance(module, PRODUCERS):
            return self._filters(name, module, op) if isinstance(op.labels, Tensor) else None
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return op.labels
        if isinstance(module, NORMS):
            vector = along(op.labels, 1)
            if vector is None or name in self.tied or isinstance(module, nn.GroupNorm) and \
                    self.norm_groups(op.labels, module.num_groups) is None:
                return None
            self.ledger.axis(name, "out", vector)
            return op.labels
        options = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        return self.operation(canonical(type(module).__name__), Operation(node, op.args, {**options, **op.kwargs},
                                                                          op.value))

    def _closed(self, name: str, module: nn.Module, op: Operation) -> Any:
        """Code that cannot be followed. Without state, and one channel like the other, it may be an activation."""
        labels, value, error = op.labels, op.value, self.book.closed[name]
        same = isinstance(value, Tensor) and isinstance(labels, Tensor) and labels.shape == value.shape
        if same and not isinstance(error, NotFollowed) and not module.state_dict() and along(labels, 1) is not None \
                and channelwise(module, value):
            return labels
        self.ledger.warn_kept(f"{name} cannot be followed, {reason(module, error)}")
        return None

    def _filters(self, name: str, module: nn.Module, op: Operation) -> Tensor:
        """Conv and linear layers: input labels are read, the outputs get labels of their own."""
        labels, value, kind = op.labels, op.value, self.book.kinds.get(name)
        linear = isinstance(module, nn.Linear)
        dim, n_out = (labels.dim() - 1, module.out_features) if linear else (1, module.out_channels)
        vector = along(labels, dim)
        if vector is None or name in self.tied or kind is None or not name:
            self.ledger.protect(labels)
            vector = torch.full((labels.shape[dim],), PROTECTED)
            self.ledger.protect(self.ledger.axes.get((name, "out")))
            out = torch.full((n_out,), PROTECTED)
        else:
            out = self.ledger.axes[name, "out"] if (name, "out") in self.ledger.axes else self.ledger.fresh(n_out)
        self.ledger.axis(name, "in", vector)
        self.ledger.axis(name, "out", out)
        self.ledger.filters.add((name, "out"))
        if kind == "computed":
            self.ledger.folded.add(name)
        groups = module_groups(module)
        if groups > 1:                                            # one conv group goes as a whole
            blocks = torch.cat([vector.view(groups, -1), out.view(groups, -1)], 1)
            self.ledger.unite(blocks[:, :1], blocks)
        if not self.training:
            places = labels.numel() // len(vector) if isinstance(module, TRANSPOSED) else value.numel() // n_out
            self.ledger.calls.append(Call(name, places))          # of one image
        shape = [1] * value.dim()
        shape[-1 if linear else 1] = n_out
        return out.view(shape).expand(value.shape)


def label(net: nn.Module, example: Any, ledger: Ledger, training: bool = False) -> None:
    """Runs the net as it is now. Raises UserError where it does not run, or its own code cannot be followed."""
    try:
        with torch.no_grad():
            book = record(net, *arguments(copied(example)))
        LabelRun(net, "", book, ledger, training).label(*arguments(copied(example)))
    except Exception as error:
        raise UserError(why_not(net, example, error)) from error


def protected(value: Tensor) -> Tensor:
    return torch.full((), PROTECTED).expand(value.shape)


def tied_modules(net: nn.Module) -> set[str]:
    """Modules that share a parameter with another module: cutting one would cut the other elsewhere."""
    owners: dict[int, set[str]] = {}
    for name, module in net.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(name)
    return set().union(*[names for names in owners.values() if len(names) > 1])


def channelwise(module: nn.Module, value: Tensor) -> bool:
    """Whether a module does to some channels what it does to them among all others."""
    some, generator = torch.arange(0, value.shape[1], 2), torch.Generator().manual_seed(0)
    images = [torch.randn(value.shape, generator=generator) * 3 for _ in range(4)]
    with torch.no_grad():
        try:
            return all(torch.equal(module(x.clone())[:, some], module(x[:, some].clone())) for x in images)
        except Exception:                                         # whatever its code makes of it
            return False


def labels_like(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """fn of every tensor in a value; None for all else."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, tuple):
        return tuple(labels_like(v, fn) for v in value)
    mixed = mapped(value, lambda v: labels_like(v, fn))
    return mixed if isinstance(value, list | dict) else None
