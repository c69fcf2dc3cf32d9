"""What the forward code of a net does: traced by torch.fx, with the values of a real call alongside.

The values decide what fx alone cannot: branches on sizes, loops over parts, which layers a subclass stands for. Each
module's own code becomes a graph of its own (`Book`), so that it can be rewritten alone; what cannot be followed stays
closed, and the rest of the net is known all the same.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from reprune.structure.layers import NORMS, PRODUCERS, probe
from reprune.structure.modes import tidy
from reprune.structure.values import Known, NotFollowed, Value, given, has_tensor, holds_known, mapped, plain
from reprune.structure.values import unknown as unwrapped

STILL = {"dim", "ndimension", "is_floating_point", "is_complex", "is_contiguous", "get_device", "type"}
SIZES = {"size", "numel", "nelement", "stride"}


@dataclass
class Recorded:
    """The code of one call of a module. `asked`: the sizes that Python has branched on, or looped over."""

    graph: fx.Graph
    asked: list[fx.Node]


@dataclass
class Book:
    """The code of every module of a net, one entry per call; what its layers are; what stays closed, and why."""

    calls: dict[str, list[Recorded]] = field(default_factory=dict)
    kinds: dict[str, str | None] = field(default_factory=dict)
    closed: dict[str, Exception] = field(default_factory=dict)

    def record(self, net: nn.Module, args: tuple, kwargs: dict, flat: bool = False) -> None:
        """Runs a net and notes its code. args, kwargs: with `Known` values"""
        recorder = Recorder(self, args, kwargs, flat)
        graph = recorder.trace(net)
        self.calls.setdefault("", []).append(Recorded(graph, recorder.asked))

    def agree(self, path: str) -> bool:
        """Whether all calls of a module run the same code."""
        codes = [str(r.graph) for r in self.calls[path]] if len(self.calls[path]) > 1 else []
        return all(code == codes[0] for code in codes)


def record(net: nn.Module, args: tuple, kwargs: dict) -> Book:
    """Of all modules that a call of the net reaches; constants stay on the net until `tidy` ends."""
    book = Book()
    book.record(net, given(args), given(kwargs))
    return book


def flat_graph(net: nn.Module, args: tuple, kwargs: dict) -> fx.GraphModule:
    """The code of the whole net as one graph of layers and functions."""
    with tidy(net), torch.no_grad():
        book = record(net, args, kwargs)
        flat = Book(kinds=book.kinds, closed=book.closed)
        flat.record(net, given(args), given(kwargs), flat=True)
        return fx.GraphModule(net, flat.calls[""][0].graph, class_name=type(net).__name__)


class Recorder(fx.Tracer):
    """A module's own code; the modules it calls are nodes, and their own code is noted on the way. flat: all in one,
    only layers are nodes."""

    proxy_buffer_attributes = True

    def __init__(self, book: Book, args: tuple, kwargs: dict, flat: bool):
        super().__init__()
        self.book, self.path, self.flat = book, "", flat
        self.args, self.kwargs = args, kwargs
        self.values: dict[fx.Node, Any] = {}
        self.still: set[fx.Node] = set()                          # dtypes, numbers of dims: the same for any sizes
        self.data: set[fx.Node] = set()                           # numbers read out of tensors
        self.asked: list[fx.Node] = []
        self.proxies: dict[str, fx.Proxy] = {}                    # of the module's parameters and buffers
        self.running = False                                      # a layer is
        self.returned: Known | None = None                        # by a module whose code has been noted just now
        self.output: Any = None

    def inside(self, module: nn.Module, path: str, args: tuple, kwargs: dict) -> Any:
        """What fx.Tracer.trace does, of a module that is called: torch is patched for the whole net already, and to do
        so again for each module takes longer than all else. -> what it returns"""
        names = ["root", "path", "args", "kwargs", "graph", "submodule_paths", "tensor_attrs", "asked", "proxies"]
        outer = {name: getattr(self, name) for name in names}
        self.root, self.path, self.args, self.kwargs = module, path, args, kwargs
        self.graph, self.asked, self.proxies = fx.Graph(tracer_cls=type(self)), [], {}
        self.submodule_paths = {m: name for name, m in module.named_modules()}
        self.tensor_attrs = {value: f"{name}.{attr}".lstrip(".") for name, m in module.named_modules()
                             for attr, value in vars(m).items() if isinstance(value, Tensor | torch.ScriptObject)}
        try:
            call, _ = self.create_args_for_root(type(module).forward, True)
            self.create_node("output", "output", (self.create_arg(call()),), {})
            self.book.calls.setdefault(path, []).append(Recorded(self.graph, self.asked))
            return plain(self.output)
        finally:
            vars(self).update(outer)

    def proxy(self, node: fx.Node) -> Value:
        return Value(node, self)

    def create_node(self, kind: str, target: Any, args: tuple, kwargs: dict, name: str | None = None,
                    type_expr: Any = None) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind != "placeholder":
            values = fx.node.map_arg(args, self.values.__getitem__), fx.node.map_arg(kwargs, self.values.__getitem__)
            if kind == "output":
                self.output = values[0][0]
            elif self.returned is not None:
                self.values[node], self.returned = self.returned.value, None
            else:
                self.values[node] = self._quietly(self._run, kind, target, *values)
                self._classify(node)
        return node

    def _quietly(self, call: Callable, *args: Any, **kwargs: Any) -> Any:
        """Runs something without noting it."""
        self.running = True
        try:
            return call(*args, **kwargs)
        finally:
            self.running = False

    def _run(self, kind: str, target: Any, args: tuple, kwargs: dict) -> Any:
        if kind == "get_attr":
            return operator.attrgetter(target)(self.root)
        if kind == "call_function":
            return target(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return self.root.get_submodule(target)(*args, **kwargs)

    def _classify(self, node: fx.Node) -> None:
        inputs = node.all_input_nodes
        if has_tensor(self.values[node]) or not inputs:
            return
        name = node.args[1] if node.target is getattr else getattr(node.target, "__name__", node.target)
        if any(n in self.data for n in inputs):
            self.data.add(node)
        elif any(has_tensor(self.values[n]) for n in inputs):
            if name in STILL or node.target is getattr and name != "shape":
                self.still.add(node)
            elif name not in SIZES and name not in ("shape", "setitem"):
                self.data.add(node)
        elif all(n in self.still for n in inputs):
            self.still.add(node)

    def ask(self, node: fx.Node) -> Any:
        """The value of a node, for Python to go on with."""
        if node in self.data or isinstance(self.values[node], Tensor):
            raise NotFollowed("it depends on the values of a tensor")
        if node not in self.still:
            self.asked.append(node)
        return self.values[node]

    def to_bool(self, obj: Value) -> bool:
        return bool(self.ask(obj.node))

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        counter = isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter) and attr_val.numel() == 1
        return attr_val if self.running or counter else super().getattr(attr, attr_val, self.proxies)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        path = f"{self.path}.{module_qualified_name}" if self.path else module_qualified_name
        return path in self.book.closed or path in self.book.kinds

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        target = self.path_of_module(m)
        path = f"{self.path}.{target}" if self.path else target
        known_args, known_kwargs = self._known(args), self._known(kwargs)
        if not self.is_leaf_module(m, target):
            self._meet(m, target, path, unwrapped(known_args), unwrapped(known_kwargs))
        if self.flat or self.is_leaf_module(m, target):
            return super().call_module(m, forward, args, kwargs)
        try:
            value = self.inside(m, path, known_args, known_kwargs)
        except Exception as error:                                # raises again where it does not run at all
            value = self._quietly(forward, *unwrapped(known_args), **unwrapped(known_kwargs))
            self.book.closed[path] = error
        self.returned = Known(value)
        return self._apart(self.create_proxy("call_module", target, args, kwargs), Known(value))

    def _meet(self, m: nn.Module, target: str, path: str, args: tuple, kwargs: dict) -> None:
        """Notes a layer: one of torch's modules, or a subclass that does what its base does."""
        if isinstance(m, torch.jit.ScriptModule):
            self.book.closed[path] = TypeError("its code is scripted")
            return
        ours = super().is_leaf_module(m, target)
        kind = "plain" if ours else None
        if isinstance(m, PRODUCERS):
            kind = self._quietly(probe, m, *args, **kwargs)
        elif isinstance(m, NORMS) and not any(True for child in m.children() for _ in child.parameters()):
            kind = "plain"
        if kind or ours:
            self.book.kinds[path] = kind

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> tuple:
        signature = inspect.signature(root_fn)
        bound = signature.bind(self.root, *self.args, **self.kwargs)
        for name, p in list(signature.parameters.items())[1:]:
            star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
            simple = p.default is None or isinstance(p.default, bool | int | float | str)
            default = () if star or p.default is p.empty else (p.default if simple else None,)
            proxy = self.create_proxy("placeholder", star + name, default, {})
            if name in bound.arguments:
                self.values[proxy.node] = unwrapped(bound.arguments[name])
                bound.arguments[name] = self._apart(proxy, bound.arguments[name])
        return (lambda: root_fn(*bound.args, **bound.kwargs)), ()

    def _known(self, value: Any) -> Any:
        """Proxies -> `Known` values."""
        return Known(self.values[value.node]) if isinstance(value, fx.Proxy) else mapped(value, self._known)

    def _apart(self, proxy: Value, value: Any) -> Any:
        """Containers stay containers, of proxies; what is written in the code stays as it is."""
        computed, inside = isinstance(value, Known), unwrapped(value)
        if inside is None or isinstance(inside, bool | str) or not holds_known(value):
            return inside
        if isinstance(inside, list | dict) or type(inside) is tuple:
            parts = value.value if computed else value
            keys = parts if isinstance(parts, dict) else range(len(parts))
            found = {k: self._apart(proxy[k], Known(parts[k]) if computed else parts[k]) for k in keys}
            return found if isinstance(parts, dict) else (tuple if isinstance(parts, tuple) else list)(found.values())
        return proxy
