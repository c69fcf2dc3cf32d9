"""Forward code that counts channels, counted again: only the code of the modules it stands in, in both modes.

A module keeps its class, its attributes and its methods: it becomes an instance of a subclass whose `forward` is the
code that torch.fx has traced, with other literals.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from reprune.structure.examples import arguments
from reprune.structure.groups import kept
from reprune.structure.labels import Edit
from reprune.structure.modes import tidy, training_branch, untouched
from reprune.structure.recorder import Book, record

Code = tuple[str, tuple[tuple[str, str, Any], ...]]               # source, and what its names mean


def rewrite(net: nn.Module, smaller: nn.Module, example: Any, edits: Iterable[Edit], keep: Tensor) -> None:
    """Gives modules of `smaller`, a copy of `net`, forward code that fits; net, example: as they were traced."""
    with untouched(net, torch.device("cpu")), tidy(net):
        books = {False: record(net, *arguments(example))}
        if any(edit.training for edit in edits):
            training_branch(net)
            books[True] = record(net, *arguments(example))
        for path in {edit.owner for edit in edits}:
            module = smaller.get_submodule(path)
            codes = {mode: _code(book, path, [e for e in edits if e.owner == path and e.training == mode], keep)
                     for mode, book in books.items() if path in book.calls}
            for name, tensor in vars(net.get_submodule(path)).items():
                if name.startswith("_tensor_constant"):
                    setattr(module, name, tensor)
            base = getattr(type(module), "rewritten_from", type(module))
            module.__class__ = _subclass(base, codes.get(False, codes.get(True)), codes.get(True, codes.get(False)))


def _code(book: Book, path: str, edits: list[Edit], keep: Tensor) -> Code:
    graph = book.calls[path][0].graph
    nodes = {node.name: node for node in graph.nodes}
    for edit in edits:
        _edit(nodes, edit, keep)
    code = graph.python_code("self")
    names = ((name, "module", value.__name__) if inspect.ismodule(value) else (name, "object", value)
             for name, value in code.globals.items())
    return code.src, tuple(names)


def _subclass(base: type, evaluation: Code, training: Code) -> type:
    run, train = _function(evaluation), _function(training)

    @functools.wraps(run)
    def forward(self, *args, **kwargs):
        return (train if self.training else run)(self, *args, **kwargs)

    def reduce(self, protocol):
        return _instance, (base, evaluation, training), self.__dict__

    return type(base.__name__, (base,), {"forward": forward, "rewritten_from": base, "__reduce_ex__": reduce,
                                         "__module__": base.__module__})


def _instance(base: type, evaluation: Code, training: Code) -> nn.Module:
    cls = _subclass(base, evaluation, training)
    return cls.__new__(cls)


def _function(code: Code) -> Any:
    source, names = code
    scope = {name: importlib.import_module(value) if kind == "module" else value for name, kind, value in names}
    exec(compile(source, "<forward code of fewer channels>", "exec"), scope)
    return scope["forward"]


def _edit(nodes: dict[str, fx.Node], edit: Edit, keep: Tensor) -> None:
    node, counts = nodes[edit.node], [int(kept(v, keep).sum()) for v in edit.vectors]
    if edit.kind == "pad":                                        # F.pad(x, widths, ...)
        widths = list(_arg(node, 1, "pad"))
        widths += [0] * (edit.at + 2 - len(widths))
        widths[edit.at:edit.at + 2] = counts
        _set(node, 1, "pad", tuple(widths))
    elif edit.kind == "split":                                    # chunk, split: parts of unequal size from now on
        _replace(nodes, edit.node, torch.split, (_arg(node, 0, "input"), counts, edit.at))
    elif edit.kind == "slice":                                    # x[:, start:stop]
        index = list(node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],))
        index[edit.at] = slice(counts[0], sum(counts))
        node.update_arg(1, tuple(index))
    elif edit.kind == "groups":                                   # F.conv2d(..., groups=), F.group_norm(x, groups)
        _set(node, edit.at, "groups" if edit.at == 6 else "num_groups", counts[0])
    elif edit.kind == "shuffle":
        before, after = (kept(v, keep) for v in edit.vectors)
        order = (before.long().cumsum(0) - 1)[edit.order][after].tolist()
        _replace(nodes, edit.node, operator.getitem, (nodes[edit.source], (slice(None),) * edit.at + (order,)))
    else:                                                         # x.view(...), torch.reshape(x, ...), x.expand(...)
        _set_size(node, edit.at, counts[0])


def _arg(node: fx.Node, at: int, name: str) -> Any:
    return node.args[at] if at < len(node.args) else node.kwargs[name]


def _set(node: fx.Node, at: int, name: str, value: Any) -> None:
    if at < len(node.args):
        node.update_arg(at, value)
    else:
        node.update_kwarg(name, value)


def _replace(nodes: dict[str, fx.Node], name: str, function: Any, args: tuple) -> None:
    """Another node in the place of one, without the views that only it has used."""
    node = nodes[name]
    with node.graph.inserting_before(node):
        nodes[name] = node.graph.call_function(function, args)
    node.replace_all_uses_with(nodes[name])
    while not node.users and node is not args[0]:
        above = _arg(node, 0, "input")
        node.graph.erase_node(node)
        node = above


def _set_size(node: fx.Node, at: int, count: int) -> None:
    first = 2 if node.target in ("unflatten", torch.unflatten) else 1
    if len(node.args) <= first:
        name = next(n for n in ("shape", "size", "sizes") if n in node.kwargs)
        node.update_kwarg(name, _resized(node, node.kwargs[name], at, count))
    elif isinstance(sizes := node.args[first], tuple | list | fx.Node) and len(node.args) == first + 1:
        node.update_arg(first, _resized(node, sizes, at, count))
    else:                                                         # x.view(2, 3)
        node.update_arg(first + at, count)


def _resized(node: fx.Node, sizes: Any, at: int, count: int) -> Any:
    if not isinstance(sizes, fx.Node):
        return (*sizes[:at], count, *sizes[at + 1:])
    with node.graph.inserting_before(node):                       # a tuple that the code computes
        parts = [node.graph.call_function(operator.getitem, (sizes, s)) for s in (slice(at), slice(at + 1, None))]
        head = node.graph.call_function(operator.add, (parts[0], (count,)))
        return node.graph.call_function(operator.add, (head, parts[1]))
