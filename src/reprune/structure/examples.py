"""Inputs of a net: a tensor, a tuple of them, or a dict by name; and what to say where a net cannot be traced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.structure.values import mapped, reason

WRAPPERS = {"DataParallel": "net.module", "DistributedDataParallel": "net.module",
            "FullyShardedDataParallel": "net.module", "OptimizedModule": "the net before torch.compile"}


def check_net(net: nn.Module) -> None:
    """Raises UserError for what only wraps a net."""
    inner = WRAPPERS.get(type(net).__name__)
    if isinstance(net, torch.jit.ScriptModule):
        inner = "the net before it was scripted"
    if inner:
        raise UserError(f"a {type(net).__name__} has no forward code of its own to follow: trace {inner}")
    if not isinstance(net, nn.Module):
        raise UserError(f"trace wants a torch.nn.Module, not a {type(net).__name__}")


def tensors(example: Any) -> list[Tensor]:
    """All tensors of an example."""
    if isinstance(example, Tensor):
        return [example]
    parts = example.values() if isinstance(example, dict) else example if isinstance(example, tuple | list) else ()
    return [t for part in parts for t in tensors(part)]


def each(example: Any, fn: Any) -> Any:
    """fn of all tensors."""
    return fn(example) if isinstance(example, Tensor) else mapped(example, lambda part: each(part, fn))


def first_image(example: Any) -> Any:
    """A copy with the first of each batch. Raises UserError where there is no tensor."""
    if not tensors(example):
        raise UserError(f"example must be a tensor [B, C, H, W], a tuple of inputs or a dict of them by name, not "
                        f"{'an empty' if example in ((), [], {}) else 'a'} {type(example).__name__}"
                        if not hasattr(example, "__array__") else
                        "example must be a tensor, not an array: pass torch.as_tensor(example)")
    return each(example, lambda t: t[:1].clone() if t.dim() else t.clone())


def copied(example: Any) -> Any:
    return each(example, Tensor.clone)


def on_meta(example: Any) -> Any:
    return each(example, lambda t: t.to("meta"))


def device_of(example: Any) -> torch.device:
    return tensors(example)[0].device


def arguments(example: Any) -> tuple[tuple, dict]:
    """As a net is called with it."""
    if isinstance(example, dict):
        return (), example
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def shapes(example: Any) -> str:
    return ", ".join(str(list(t.shape)) for t in tensors(example))


def why_not(net: nn.Module, example: Any, error: Exception) -> str:
    """One line: the example does not fit, or the code cannot be followed."""
    args, kwargs = arguments(copied(example))
    try:
        with torch.no_grad():
            net(*args, **kwargs)
    except Exception as wrong:
        return f"{type(net).__name__} does not run on an example of shape {shapes(example)}: " \
               f"{(str(wrong) or type(wrong).__name__).splitlines()[0]}"
    return f"torch.fx cannot trace {reason(net, error)}: its forward must not branch on tensor values; move what " \
           "cannot be followed into a module of its own: its channels are then kept, and the rest is pruned"
