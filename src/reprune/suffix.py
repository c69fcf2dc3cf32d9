"""What a net says without some filters of a group, for many candidates: what lies before the group is computed once.

A channel acts only through the layers that read it, so silencing it is zeroing it where they read. The forward pass up
to the first of them is the same for all candidates and is kept; the rest runs on several of them at a time, stacked in
the batch dimension. Batch norm is folded into the convs before it: that is exact up to rounding, and saves a pass over
memory per layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from reprune.groups import FilterGroup


@dataclass
class _Candidates:
    """Sets of filters that run together. gone: bool [n, size]; values: what the nodes have become, [n B, ...]."""

    gone: Tensor
    readers: dict[str, Tensor]          # layer -> the input channels of each filter [size, k]
    dirty: set[fx.Node]
    values: dict[fx.Node, Any] = field(default_factory=dict)


class Suffix(fx.Interpreter):
    """One batch through a traced net in eval mode, with every intermediate value kept.

    x [B, C, H, W], y [B]; `images`: at most so many run at once (candidates times B), the memory knob.
    """

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, images: int = 512):
        super().__init__(fuse(net), garbage_collect_values=False)
        self.y, self.images = y, images
        self.logits = self.run(x)                                 # [B, classes]
        self.kept: dict[fx.Node, Any] = dict(self.env)
        self.whole: dict[fx.Node, Tensor] = {}                    # outputs of the convs that read a group

    def loss(self) -> Tensor:
        """Mean cross-entropy of the whole net."""
        return F.cross_entropy(self.logits, self.y)

    def losses_without(self, group: FilterGroup, gone: Tensor) -> Tensor:
        """Mean cross-entropy with sets of filters silenced. gone: bool [sets, size] -> [sets]"""
        logits = self.logits_without(group, gone)
        target = self.y.expand(len(gone), -1)                     # [sets, B]
        return F.cross_entropy(logits.movedim(2, 1), target, reduction="none").mean(1)

    def logits_without(self, group: FilterGroup, gone: Tensor) -> Tensor:
        """gone: bool [sets, size], True = silent -> [sets, B, classes]"""
        readers = {s.module: s.index for s in group.readers()}
        dirty = self._downstream(readers)
        some = max(1, self.images // len(self.y))
        return torch.cat([self._logits(_Candidates(g, readers, dirty)) for g in gone.split(some)])

    def _downstream(self, readers: dict[str, Tensor]) -> set[fx.Node]:
        """The nodes whose values change: the layers that read the group, and all that follows from them."""
        dirty: set[fx.Node] = set()
        for node in self.graph.nodes:
            reads = node.op == "call_module" and node.target in readers
            if reads or any(n in dirty for n in node.all_input_nodes):
                dirty.add(node)
        return dirty

    def _logits(self, of: _Candidates) -> Tensor:
        for node in self.graph.nodes:                             # in order: no deep recursion
            if node in of.dirty and node.op != "output":
                self._value(node, of)
        output = next(iter(reversed(self.graph.nodes)))
        return fx.node.map_arg(output.args[0], lambda n: self._value(n, of)).unflatten(0, (len(of.gone), -1))

    def _value(self, node: fx.Node, of: _Candidates) -> Any:
        if node not in of.values:
            old = self.kept[node]
            if node.op == "get_attr":                             # a weight or constant
                of.values[node] = old
            elif node in of.dirty or not isinstance(old, Tensor) and node.all_input_nodes:      # sizes follow the batch
                of.values[node] = self._call(node, of)
            else:
                of.values[node] = _repeat(old, len(of.gone), len(self.y))
        return of.values[node]

    def _call(self, node: fx.Node, of: _Candidates) -> Any:
        if node.op == "call_module" and node.target in of.readers:
            module, index = self.fetch_attr(node.target), of.readers[node.target]            # [size, k] input channels
            if self._subtracts(node, module, index, of):
                return self._without(node, module, index[of.gone.int().argmax(1), 0])
            x = self._value(node.args[0], of)
            dim = x.dim() - 1 if isinstance(module, nn.Linear) else 1
            mask = torch.ones(len(of.gone), x.shape[dim])                                     # [n, channels]
            mask[:, index.flatten()] = (~of.gone).repeat_interleave(index.shape[1], 1).float()
            shape = [len(of.gone) * len(self.y)] + [1] * (x.dim() - 1)
            shape[dim] = -1
            return module(x * mask.repeat_interleave(len(self.y), 0).to(x).view(shape))
        args = fx.node.map_arg(node.args, lambda n: self._value(n, of))
        kwargs = fx.node.map_arg(node.kwargs, lambda n: self._value(n, of))
        return getattr(self, node.op)(node.target, args, kwargs)

    @staticmethod
    def _subtracts(node: fx.Node, module: nn.Module, index: Tensor, of: _Candidates) -> bool:
        """A conv is linear in its input: where that has not changed yet, one channel's share can be taken off."""
        return (type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
                and index.shape[1] == 1 and bool((of.gone.sum(1) == 1).all()) and node.args[0] not in of.dirty)

    def _without(self, node: fx.Node, conv: nn.Conv2d, channels: Tensor) -> Tensor:
        """conv(x) - conv(x, channel c alone), for each c: one grouped conv for all. channels [n] -> [n B, O, H, W]"""
        n, x = len(channels), self.kept[node.args[0]][:, channels]                            # [B, n, H, W]
        weight = conv.weight[:, channels].transpose(0, 1).flatten(0, 1).unsqueeze(1)          # [n O, 1, kh, kw]
        share = F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, groups=n)    # [B, n O, H, W]
        share = share.unflatten(1, (n, conv.out_channels)).transpose(0, 1)                    # [n, B, O, H, W]
        if node not in self.whole:                                # not from `kept`: a ReLU behind may work in place
            self.whole[node] = conv(self.kept[node.args[0]])      # [B, O, H, W]
        return (self.whole[node] - share).flatten(0, 1)


def _repeat(old: Any, n: int, batch: int) -> Any:
    """A kept value for n candidates: [B, ...] -> [n B, ...]; what has no batch dimension stays."""
    if isinstance(old, Tensor) and old.dim() and old.shape[0] == batch:
        return old.unsqueeze(0).expand(n, *old.shape).flatten(0, 1) if n > 1 else old.clone()     # never `old` itself
    return old
