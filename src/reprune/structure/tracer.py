"""Runs a net with a label on every channel of every tensor.

Each tensor of the forward pass carries a tensor of labels of its own shape. Conv and linear layers read their input
labels and issue fresh ones; what all other operations do to them stands in operations.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from reprune.structure.labels import PROTECTED, Call, Ledger, along
from reprune.structure.operations import LOCAL, POINTWISE, Operations

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LEAF_NAMES = {"maxpool": "max_pool", "avgpool": "avg_pool", "adaptiveavgpool": "adaptive_avg_pool",
              "adaptivemaxpool": "adaptive_max_pool", "lppool": "lp_pool", "leakyrelu": "leaky_relu"}


class LabelRun(Operations):
    """One labelled forward pass; what it finds goes into the ledger."""

    def __init__(self, graph: fx.GraphModule, net: nn.Module, ledger: Ledger, rewritable: bool = True):
        super().__init__(graph, ledger, rewritable)
        self._tied = _tied(net)

    def label(self, example: Tensor) -> None:
        with torch.no_grad():
            self.run(example)

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
            labels = self.operation(node, name.strip("_").removesuffix("_"), value)
        if labels is None:
            for each in read:
                self.ledger.protect(each)
            labels = _map(value, lambda t: torch.full((1,), PROTECTED).expand(t.shape))
        return labels

    def _module(self, node: fx.Node, value: Any) -> Tensor | None:
        module, name = self.fetch_attr(node.target), node.target
        self.ledger.called.add(name)
        labels = self.labels[node.all_input_nodes[0]]
        if type(module) in (*CONVS, nn.Linear):
            return self._filters(name, module, labels, value)
        if type(module) is nn.PReLU and module.num_parameters == 1:
            return labels
        if type(module) in (*NORMS, nn.PReLU):
            vector = along(labels, 1)
            if vector is None or name in self._tied:
                return None
            self.ledger.axis(name, "out", vector)
            return labels
        kind = type(module).__name__.lower()
        for leaf, function in LEAF_NAMES.items():
            kind = kind.replace(leaf, function) if kind.startswith(leaf) else kind
        if kind in POINTWISE | LOCAL | {"flatten"}:
            return self.operation(node, kind, value)
        return self.unknown(type(module).__name__)

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
