"""The feature maps of filters: what the layers read that read them, before any pooling, as a forward pass makes it.

A filter's map is found from its readers backwards, over pooling, dropout and flattening, to the node that makes it: the
ReLU behind its batch norm, or behind the sum of a residual block; a concat of such. Where layers of different depth
read it (the trunk of a stage), it has a place at each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reprune.structure.check import net_graph
from reprune.structure.groups import FilterGroup
from reprune.structure.operations import LOCAL_NAMES, canonical, operation_name

PASSED = LOCAL_NAMES | {"flatten", "dropout", "dropout2d", "dropout3d", "identity", "contiguous", "mean"}
"""Operations that are walked back over: what they make of a channel is not another feature."""
MOVED = {"permute", "transpose", "movedim"}                       # channels stand elsewhere before it


@dataclass(frozen=True)
class Place:
    """Where the maps of a group are made: a node of the traced graph."""

    node: str
    index: Tensor                       # [size, k]: inputs of the reader that belong to each filter
    inputs: int                         # of the reader

    def of(self, channels: Tensor) -> Tensor:
        """A number per channel of the node -> per filter and its channels. [..., C] -> [..., size, k]

        >>> Place("relu", torch.tensor([[0, 1], [4, 5]]), 6).of(torch.tensor([7., 8., 9.]))      # 3 maps of 2 places
        tensor([[7.],
                [9.]])
        """
        each = max(1, self.inputs // channels.shape[-1])          # inputs per channel: the places of a flattened map
        return channels[..., self.index[:, ::each].to(channels.device) // each]


class Maps(fx.Interpreter):
    """Runs a traced net, and lets `see(node, value)` look at, or replace, the maps of some groups; eval mode is up to
    the caller."""

    def __init__(self, net: nn.Module, groups: Iterable[FilterGroup], see: Callable[[str, Tensor], Tensor | None]):
        super().__init__(net_graph(net))
        self.see, self.net = see, net
        readers: dict[str, list[fx.Node]] = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                readers.setdefault(node.target, []).append(node)
        self.places = {g.name: self._places(g, readers) for g in groups}
        self.seen = {place.node for places in self.places.values() for place in places}

    def _places(self, group: FilterGroup, readers: dict[str, list[fx.Node]]) -> list[Place]:
        found = {}
        for s in group.readers():
            for node in readers.get(s.module, ()):                # an auxiliary head does not run
                made, module = self._made(node.all_input_nodes[0]), self.net.get_submodule(s.module)
                found.setdefault(made.name, Place(made.name, s.index, getattr(module, "in_channels", 0)
                                                  or module.in_features))
        return list(found.values())

    def _made(self, node: fx.Node) -> fx.Node:
        while self.operation(node) in PASSED and len(node.all_input_nodes) == 1 \
                and self.operation(node.all_input_nodes[0]) not in MOVED:
            node = node.all_input_nodes[0]
        return node

    def operation(self, node: fx.Node) -> str:
        """What a node does, by the name that functions, methods and modules share: relu, cat, adaptiveavgpool2d."""
        if node.op == "call_module":
            return canonical(type(self.net.get_submodule(node.target)).__name__)
        return operation_name(node)

    def made_by(self, place: Place) -> Iterator[str]:
        """The operations that make the values of a place; of a concat, those of its parts."""
        nodes = [next(node for node in self.graph.nodes if node.name == place.node)]
        while nodes:
            node = nodes.pop()
            if self.operation(node) in PASSED | {"cat", "concat"}:
                nodes += node.all_input_nodes
            else:
                yield self.operation(node)

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.name not in self.seen:
            return value
        changed = self.see(node.name, value)
        return value if changed is None else changed


class Gates:
    """A gate of value 1 on every map of some groups; eval mode is up to the caller."""

    def __init__(self, net: nn.Module, groups: Iterable[FilterGroup]):
        self.maps = Maps(net, groups, self._gated)
        self.ones: dict[str, Tensor] = {}                         # node -> gates of each example [B, C]
        self.sizes: dict[str, int] = {}                           # node -> values of a map

    def _gated(self, node: str, value: Tensor) -> Tensor:
        self.ones[node] = value.new_ones(value.shape[:2], requires_grad=True)
        self.sizes[node] = value[0, 0].numel()
        return value * self.ones[node].view(*value.shape[:2], *[1] * (value.dim() - 2))

    def gradients(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Of the cross-entropy of each example by its own gates: node -> sum over the map of dL/dz z, [B, C]."""
        with torch.enable_grad():
            loss = F.cross_entropy(self.maps.run(x), y, reduction="sum")
            found = torch.autograd.grad(loss, list(self.ones.values()))
        return dict(zip(self.ones, found, strict=True))


def channels(value: Tensor) -> Tensor:
    """The values of each channel, of each example. [B, C, ...] -> [B, C, M]

    >>> channels(torch.zeros(2, 3, 4, 4)).shape, channels(torch.zeros(2, 3)).shape
    (torch.Size([2, 3, 16]), torch.Size([2, 3, 1]))
    """
    return value.flatten(2) if value.dim() > 2 else value.unsqueeze(2)
