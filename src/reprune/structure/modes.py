"""Looking at a net without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

MAKERS = {"zeros", "ones", "empty", "full", "rand", "randn", "arange", "linspace", "randint"}


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """In eval mode; afterwards every module has the mode it had."""
    modes = {m: m.training for m in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def whole(net: nn.Module) -> Iterator[None]:
    """Within, a dynamic net computes all its channels: its modules with an attribute `skips` see it False."""
    dynamic = [m for m in net.modules() if getattr(m, "skips", False) is True]
    try:
        for module in dynamic:
            module.skips = False
        yield
    finally:
        for module in dynamic:
            module.skips = True


@contextmanager
def untouched(net: nn.Module, device: torch.device) -> Iterator[None]:
    """In eval mode and without gradients; afterwards modes, buffers (some nets count their calls in one) and the random
    numbers of the CPU and of `device` are what they were."""
    buffers = [(m, name, b) for m in net.modules() for name, b in m._buffers.items() if b is not None]
    with torch.no_grad(), eval_mode(net), torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            for module, name, buffer in buffers:
                module._buffers[name] = buffer.clone()
            yield
        finally:
            for module, name, buffer in buffers:
                module._buffers[name] = buffer


def training_branch(net: nn.Module) -> None:
    """In place: modules take the branches of training mode, batch norm stays put."""
    for module in net.modules():
        module.training = not isinstance(module, nn.modules.batchnorm._BatchNorm)


@contextmanager
def tidy(net: nn.Module) -> Iterator[None]:
    """Within, code that makes tensors of some size is followed, too: torch.zeros(x.shape[0], 1) has no tensor that
    torch.fx could go by. Afterwards takes off what torch.fx leaves on a net: the constants of its code."""
    attributes = {module: set(vars(module)) for module in net.modules()}
    makers = {name: getattr(torch, name) for name in MAKERS}
    try:
        for name, maker in makers.items():
            setattr(torch, name, _following(maker))
        yield
    finally:
        for name, maker in makers.items():
            setattr(torch, name, maker)
        for module, names in attributes.items():
            for name in set(vars(module)) - names:
                delattr(module, name)


def _following(maker: Callable) -> Callable:
    def make(*args: Any, **kwargs: Any) -> Any:
        found: list[fx.Proxy] = []
        fx.node.map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, fx.Proxy) else None)
        return found[0].tracer.create_proxy("call_function", maker, args, kwargs) if found else maker(*args, **kwargs)
    return make
