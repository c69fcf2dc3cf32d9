"""What a net says without some filters of a group, for many candidates: what lies before the group is computed once.

A channel acts only through the layers that read it, so silencing it is zeroing it where they read. The forward pass up
to the first of them is the same for all candidates and is kept; the rest runs on several of them at a time, stacked in
the batch dimension. Batch norm is folded into the convs before it: that is exact up to rounding, and saves a pass over
memory per layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from reprune.structure.groups import FilterGroup
from reprune.structure.recorder import flat_graph

MEMORY = 4 * 2**30                      # bytes that activations may take at once, about: half for those that are kept,
                                        # half for those of the candidates; fewer images at a time where they are large


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

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, images: int = 512, fused: fx.GraphModule | None = None):
        super().__init__(fused or _fused(net, x), garbage_collect_values=False)
        self.y, self.images = y, images
        self.logits = self.run(x)                                 # [B, classes]
        self.kept: dict[fx.Node, Any] = dict(self.env)
        self.whole: dict[fx.Node, Tensor] = {}                    # outputs of the convs that read a group
        used = {n: node for node in self.graph.nodes for n in node.all_input_nodes}
        self.last: dict[fx.Node, list[fx.Node]] = {}              # node -> the values that only it still needs
        for value, user in used.items():
            self.last.setdefault(user, []).append(value)

    @classmethod
    def over(cls, net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], images: int = 512,
             memory: int | None = None) -> Iterator[Suffix]:
        """One after the other for all batches (x, y), which are cut into parts where the activations would take more
        than `memory` bytes (MEMORY). Batch norm is folded once; net: as it is in the meantime."""
        fused = most = None
        for x, y in batches:
            if fused is None:
                fused = _fused(net, x)
                most = max(1, (memory or MEMORY) // 2 // cls(net, x[:1].clone(), y[:1], fused=fused).nbytes())
            for part in zip(x.split(most), y.split(most), strict=True):
                yield (one := cls(net, *part, min(images, most), fused))
                one.kept.clear()                                  # before the next one takes as much
                one.env.clear()

    def nbytes(self) -> int:
        """Of all values that are kept."""
        storages = (v.untyped_storage() for v in self.kept.values() if isinstance(v, Tensor))
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())

    def loss(self) -> Tensor:
        """Mean cross-entropy of the whole net."""
        return F.cross_entropy(self.logits, self.y)

    def losses_without(self, group: FilterGroup, gone: Tensor) -> Tensor:
        """Mean cross-entropy with sets of filters silenced. gone: bool [sets, size] -> [sets]"""
        def losses(logits: Tensor) -> Tensor:                     # [some sets, B, classes] -> [some sets]
            return F.cross_entropy(logits.movedim(2, 1), self.y.expand(len(logits), -1), reduction="none").mean(1)

        return torch.cat([losses(logits) for logits in self._parts(group, gone)])

    def logits_without(self, group: FilterGroup, gone: Tensor) -> Tensor:
        """gone: bool [sets, size], True = silent -> [sets, B, classes]"""
        return torch.cat(list(self._parts(group, gone)))

    def _parts(self, group: FilterGroup, gone: Tensor) -> Iterator[Tensor]:
        """The same, as many sets at a time as may run at once."""
        readers = {s.module: s.index for s in group.readers()}
        dirty = self._downstream(readers)
        some = max(1, self.images // len(self.y))
        for part in gone.split(some):
            yield self._logits(_Candidates(part, readers, dirty))
        self.whole.clear()

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
            for done in self.last.get(node, ()) if node.op != "output" else ():       # no later node reads it
                of.values.pop(done, None)
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


def _fused(net: nn.Module, x: Tensor) -> fx.GraphModule:
    return fuse(flat_graph(net, (x[:1].clone(),), {}), no_trace=True)


def _repeat(old: Any, n: int, batch: int) -> Any:
    """A kept value for n candidates: [B, ...] -> [n B, ...]; what has no batch dimension stays."""
    if isinstance(old, Tensor) and old.dim() and old.shape[0] == batch:
        return old.unsqueeze(0).expand(n, *old.shape).flatten(0, 1) if n > 1 else old.clone()     # never `old` itself
    return old
