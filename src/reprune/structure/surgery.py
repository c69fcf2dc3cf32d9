"""Two functions of (net, plan): zero the filters, or really remove them. In eval mode their outputs are equal.

    silence(net, plan)(x) == remove(net, plan)(x)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.structure.check import random_inputs, verify
from reprune.structure.groups import Plan, kept, traced
from reprune.structure.layers import acting, cut, folded, is_plain, owner
from reprune.structure.notes import note, notes
from reprune.structure.rewrite import rewrite


def silence(net: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the same shapes with the removed filters zeroed everywhere they act: weights, biases, BN scale and
    shift (a dead filter would otherwise still emit beta - gamma mu / sigma), and the weights that read them (behind a
    sigmoid, say, a silent channel is not zero).

    net: traced (`reprune.trace`); plan: group name -> keep mask, groups not named are kept. Raises UserError for a plan
    that does not fit the net.
    """
    traced(net).keep(plan)                                        # before the copy: a bad plan costs nothing
    with folds(net):
        net = copy.deepcopy(net)
    _silence(net, plan)
    return net


@contextmanager
def silenced(net: nn.Module, plan: Plan) -> Iterator[nn.Module]:
    """As `silence`, but in place while the block lasts: many plans, one after the other, need no copy of the net.
    Afterwards every weight has its old bits again, also where the block raises."""
    before = []
    with folds(net):
        try:
            before = _silence(net, plan)
            yield net
        finally:
            for tensor, dim, gone, values in reversed(before):
                tensor.index_copy_(dim, gone, values)


@contextmanager
def folds(net: nn.Module) -> Iterator[None]:
    """`fold`, while the block lasts."""
    layers = fold(net)
    try:
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)


def mute(net: nn.Module, plan: Plan) -> None:
    """As `silence`, but in place and for good."""
    fold(net)
    _silence(net, plan)


def fold(net: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """In place: the layers of groups that compute their weights (weight_norm, spectral_norm, standardised convs,
    pruning masks) become plain ones with the weights they have now. -> what they were: (parent, name, layer)"""
    before = []
    for path in sorted(traced(net).folded):
        parent, name = owner(net, path)
        if not is_plain(layer := getattr(parent, name)):
            before.append((parent, name, layer))
            setattr(parent, name, folded(layer))
    return before


def _silence(net: nn.Module, plan: Plan) -> list[tuple[Tensor, int, Tensor, Tensor]]:
    """In place. -> (weight, dimension, which of its slices are zero now, what they were)"""
    keep, before = traced(net).keep(plan), []
    for (name, axis), atoms in traced(net).axes.items():
        gone = (~kept(atoms, keep)).nonzero().squeeze(1)
        for tensor, dim in acting(net, name, axis) if len(gone) else ():
            values, at = tensor.data, gone.to(tensor.device)      # .data: a backward pass may still want the weights
            before.append((values, dim, at, values.index_select(dim, at)))
            values.index_fill_(dim, at, 0)
    return before


def remove(net: nn.Module, plan: Plan, check: bool = True) -> nn.Module:
    """A copy that is really smaller, with outputs equal to `silence(net, plan)` in eval mode.

    check: run both on a random image, and raise RemovalError rather than give out a net that says something else; False
    where the copy is thrown away, or its weights are.

    Class and module names stay; modules whose forward code itself counts channels (zero-padded shortcuts, chunks,
    literal sizes in a view) get a subclass with other literals, layers that compute their weights become plain ones.
    The plan is appended to the copy's history, from which `reprune.load` rebuilds it. Trace the copy again before
    pruning it again.
    """
    trace = traced(net)
    keep = trace.keep(plan)
    with folds(net):
        smaller = copy.deepcopy(net)
    for (name, axis), atoms in trace.axes.items():
        stay = kept(atoms, keep)
        if not stay.all():
            cut(smaller, name, axis, stay.nonzero().squeeze(1))
    edits = [e for e in trace.edits if not all(kept(v, keep).all() for v in e.vectors)]
    if edits:
        rewrite(net, smaller, random_inputs(trace, net), edits, keep)
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
    for name in masks:
        if not isinstance(getattr(net.get_submodule(name), "weight", None), nn.Parameter):
            raise UserError(f"{name} computes its weight: call reprune.structure.surgery.fold(net) before it trains")
    return [(tensor, keep.to(tensor).view([-1 if d == dim else 1 for d in range(tensor.dim())]))
            for name, keep in masks.items() for tensor, dim in acting(net, name, "out")]


@torch.no_grad()
def zero_filters(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Soft pruning, in place: only the filters of some layers (weights and biases) become zero, so that training can
    bring them back; BN and the layers that read them stay (He et al. 2018). masks: layer -> which stay [filters]"""
    for tensor, keep in filter_masks(net, masks):
        tensor.masked_fill_(keep == 0, 0)
