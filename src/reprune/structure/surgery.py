"""Two functions of (net, plan): zero the filters, or really remove them. In eval mode their outputs are equal.

    silence(net, plan)(x) == remove(net, plan)(x)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from reprune.structure.check import verify
from reprune.structure.groups import Plan, kept, traced
from reprune.structure.labels import Edit
from reprune.structure.notes import note, notes


def silence(net: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the same shapes with the removed filters zeroed everywhere they act: weights, biases, BN scale and
    shift (a dead filter would otherwise still emit beta - gamma mu / sigma), and the weights that read them (behind a
    sigmoid, say, a silent channel is not zero).

    net: traced (`reprune.trace`); plan: group name -> keep mask, groups not named are kept. Raises UserError for a plan
    that does not fit the net.
    """
    traced(net).keep(plan)                                        # before the copy: a bad plan costs nothing
    net = copy.deepcopy(net)
    _silence(net, plan)
    return net


@contextmanager
def silenced(net: nn.Module, plan: Plan) -> Iterator[nn.Module]:
    """As `silence`, but in place while the block lasts: many plans, one after the other, need no copy of the net.
    Afterwards every weight has its old bits again, also where the block raises."""
    before = _silence(net, plan)
    try:
        yield net
    finally:
        for tensor, dim, gone, values in reversed(before):
            tensor.index_copy_(dim, gone, values)


def mute(net: nn.Module, plan: Plan) -> None:
    """As `silence`, but in place and for good."""
    _silence(net, plan)


def _silence(net: nn.Module, plan: Plan) -> list[tuple[Tensor, int, Tensor, Tensor]]:
    """In place. -> (weight, dimension, which of its slices are zero now, what they were)"""
    keep, before = traced(net).keep(plan), []
    for (name, axis), atoms in traced(net).axes.items():
        gone = (~kept(atoms, keep)).nonzero().squeeze(1)
        for tensor, dim in _acting(net.get_submodule(name), axis) if len(gone) else ():
            values, at = tensor.data, gone.to(tensor.device)      # .data: a backward pass may still want the weights
            before.append((values, dim, at, values.index_select(dim, at)))
            values.index_fill_(dim, at, 0)
    return before


def remove(net: nn.Module, plan: Plan, check: bool = True) -> nn.Module:
    """A copy that is really smaller, with outputs equal to `silence(net, plan)` in eval mode.

    check: run both on a random image, and raise RemovalError rather than give out a net that says something else; False
    where the copy is thrown away, or its weights are.

    Class and module names stay; only where the forward code itself counts channels (zero-padded shortcuts, chunks,
    literal sizes in a view) is the copy a torch.fx GraphModule with the same module names. The plan is appended to the
    copy's history, from which `reprune.load` rebuilds it. Trace the copy again before pruning it again.
    """
    trace = traced(net)
    keep = trace.keep(plan)
    smaller = copy.deepcopy(net)
    for (name, axis), atoms in trace.axes.items():
        stay = kept(atoms, keep)
        if not stay.all():
            _cut(smaller.get_submodule(name), axis, stay.nonzero().squeeze(1))
    edits = [e for e in trace.edits if not all(kept(v, keep).all() for v in e.vectors)]
    if edits:
        smaller = _rewrite(smaller, edits, keep)
    history = [*notes(net).get("history", []), {g: m.clone().cpu() for g, m in plan.items()}]
    note(smaller, trace=None, history=history, input_shape=trace.input_shape)
    if check:
        verify(net, silenced(net, plan), smaller, keep)
    return smaller


def layer_masks(net: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Which filters stay, of every layer that makes channels of a group. layer -> bool [filters]"""
    trace = traced(net)
    keep = trace.keep(plan)
    return {s.module: kept(trace.axes[s.module, "out"], keep) for g in trace.groups for s in g.producers(net)}


def filter_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """The filters of some layers, weights and biases, each with 1 where they stay and 0 where not; broadcasts."""
    return [(tensor, keep.to(tensor).view(-1, *[1] * (tensor.dim() - 1)))
            for name, keep in masks.items() for tensor, _ in _acting(net.get_submodule(name), "out")]


@torch.no_grad()
def zero_filters(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Soft pruning, in place: only the filters of some layers (weights and biases) become zero, so that training can
    bring them back; BN and the layers that read them stay (He et al. 2018). masks: layer -> which stay [filters]"""
    for tensor, keep in filter_masks(net, masks):
        tensor.masked_fill_(keep == 0, 0)


def _acting(module: nn.Module, axis: str) -> list[tuple[Tensor, int]]:
    """The weights through which the channels of an axis act, and which of their dimensions that is."""
    if axis == "in":
        return [(module.weight, 1)] if getattr(module, "groups", 1) == 1 else []
    both = (getattr(module, name, None) for name in ("weight", "bias"))
    return [(tensor, 0) for tensor in both if tensor is not None]


def _cut(module: nn.Module, axis: str, stay: Tensor) -> None:
    if axis == "out":
        if getattr(module, "groups", 1) > 1:
            module.groups = module.groups * len(stay) // module.out_channels      # whole conv groups go
        for name in ("weight", "bias", "running_mean", "running_var"):
            if isinstance(getattr(module, name, None), Tensor):
                _shrink(module, name, 0, stay)
        _count(module, ("out_channels", "out_features", "num_features", "num_parameters"), len(stay))
    else:
        if getattr(module, "groups", 1) == 1:
            _shrink(module, "weight", 1, stay)
        _count(module, ("in_channels", "in_features"), len(stay))


def _count(module: nn.Module, names: tuple[str, ...], n: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, n)


def _shrink(module: nn.Module, name: str, dim: int, stay: Tensor) -> None:
    old = getattr(module, name)
    new = old.detach().index_select(dim, stay.to(old.device))
    if old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
        new = new.contiguous(memory_format=torch.channels_last)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)


def _rewrite(net: nn.Module, edits: list[Edit], keep: Tensor) -> fx.GraphModule:
    """The same forward code with its channel literals counted again."""
    modes = {name: m.training for name, m in net.named_modules()}
    net.eval()                                                    # as it was traced
    graph = fx.symbolic_trace(net).graph
    nodes = {node.name: node for node in graph.nodes}
    for edit in edits:
        _rewrite_node(nodes[edit.node], edit, [int(kept(v, keep).sum()) for v in edit.vectors])
    for node in [n for n in graph.nodes if n.kwargs.get("training") is False]:    # F.dropout(x, training=self.training)
        with graph.inserting_before(node):
            node.update_kwarg("training", graph.create_node("get_attr", "training"))
    module = fx.GraphModule(net, graph, class_name=type(net).__name__)
    note(module, **notes(net))
    for name, child in module.named_modules():
        child.training = modes.get(name, modes[""])
    return module


def _rewrite_node(node: fx.Node, edit: Edit, counts: list[int]) -> None:
    if edit.kind == "pad":                                        # F.pad(x, widths, ...)
        widths = list(node.kwargs.get("pad", node.args[1] if len(node.args) > 1 else ()))
        widths[edit.at:edit.at + 2] = counts
        if "pad" in node.kwargs:
            node.update_kwarg("pad", tuple(widths))
        else:
            node.update_arg(1, tuple(widths))
    elif edit.kind == "split":                                    # chunk, split: parts of unequal size from now on
        with node.graph.inserting_before(node):
            new = node.graph.call_function(torch.split, (node.args[0], counts, edit.at))
        node.replace_all_uses_with(new)
        node.graph.erase_node(node)
    elif edit.kind == "slice":                                    # x[:, start:stop]
        before, inside = counts
        index = list(node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],))
        index[edit.at] = slice(before, before + inside)
        node.update_arg(1, tuple(index))
    else:                                                         # x.view(...), torch.reshape(x, ...)
        sizes = node.args[1:] if len(node.args) > 1 else (node.kwargs["shape"],)
        sizes = list(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes)
        sizes[edit.at] = counts[0]
        node.args, node.kwargs = (node.args[0], tuple(sizes)), {}
