"""What follows a conv, read from the forward code: the batch norm that alone reads it, and a ReLU that reads that."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

POOLING = {"maxpool2d", "avgpool2d", "max_pool2d", "avg_pool2d"}


@dataclass(frozen=True)
class Chain:
    norm: str | None = None             # None: something else reads the conv, too
    relu: bool = False                  # that alone reads the batch norm
    source: str | None = None           # the conv whose ReLU, pooled or not, this one alone reads


def chains(net: nn.Module) -> dict[str, Chain]:
    """Of every conv that is called once. Raises what torch.fx does where it cannot follow the forward code.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> chains(net)["0"], chains(net)["3"]
    (Chain(norm='1', relu=True, source=None), Chain(norm=None, relu=False, source='0'))
    """
    modules, ends, found, twice = dict(net.named_modules()), {}, {}, set()
    for node in fx.symbolic_trace(net).graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.Conv2d):
            continue
        norm = _reader(node)
        norm = norm if norm is not None and norm.op == "call_module" \
            and isinstance(modules[norm.target], _BatchNorm) else None
        relu = norm and _reader(norm)
        end = relu = relu if relu is not None and _name(relu, modules) == "relu" else None
        while end is not None and (after := _reader(end)) is not None and _name(after, modules) in POOLING:
            end = after
        if end is not None and _reader(end) is not None:
            ends[end] = node.target
        twice |= {node.target} & found.keys()
        found[node.target] = Chain(norm and norm.target, relu is not None, ends.get(node.all_input_nodes[0]))
    return {name: chain for name, chain in found.items() if name not in twice}


def _reader(node: fx.Node) -> fx.Node | None:
    """The only one, if there is only one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _name(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return type(modules[node.target]).__name__.lower()
    return str(getattr(node.target, "__name__", node.target)).strip("_")
