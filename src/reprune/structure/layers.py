"""The layers whose channels can be counted and cut: what kind a module is, where its channels act, how they are cut.

A subclass of conv, linear or norm is treated as its base if it calls the base's function once. Where its weight is
computed on the way (weight_norm, spectral_norm, a standardised conv, a pruning mask), cutting it would change what is
computed: `fold` makes a plain layer of it, with the weight as it is now.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reprune.structure.modes import untouched

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRODUCERS = (*CONVS, *TRANSPOSED, nn.Linear)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU)              # batch and instance norm: one per channel
TRANSPOSING = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
CALLS = (F.conv1d, F.conv2d, F.conv3d, F.linear, *TRANSPOSING)
COUNTS = {"out": ("out_channels", "out_features", "num_features", "num_channels", "num_parameters"),
          "in": ("in_channels", "in_features")}


class Watch(TorchFunctionMode):
    """Notes the calls of conv and linear functions: (input, weight, bias, multiply-adds for the whole batch)."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor | None, int]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in CALLS:
            named = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            weight, read = named["weight"], named["input"]
            each = read if func in TRANSPOSING else out           # a value that is read, or made, with one filter
            self.calls.append((read, weight, named.get("bias"), each.numel() * (weight.numel() // weight.shape[0])))
        return out


def is_plain(module: nn.Module) -> bool:
    """A conv or linear layer of torch itself that holds its weight."""
    return type(module) in PRODUCERS and "weight" in module._parameters


def probe(module: nn.Module, *args: Any, **kwargs: Any) -> str | None:
    """What a subclass of a conv or linear layer does: "plain", its base's call with its own weight; "computed", with a
    weight made from it; None: something else."""
    if is_plain(module):
        return "plain"
    with Watch() as watch, torch.no_grad():
        module(*args, **kwargs)
    if len(watch.calls) != 1:
        return None
    read, weight, bias, _ = watch.calls[0]
    own = module._parameters
    if own.keys() <= {"weight", "bias"} and weight is own.get("weight") and bias is own.get("bias"):
        return "plain"
    return "computed" if weight.shape == module.weight.shape and read is args[0] else None


def folded(module: nn.Module) -> nn.Module:
    """A plain layer that does what this one does now; its weight is no longer computed."""
    base = next(c for c in type(module).__mro__ if c in PRODUCERS)
    like = next(module.parameters())
    if base is nn.Linear:
        size, options = (1, module.in_features), (module.in_features, module.out_features)
    else:
        spatial = [(k - 1) * d + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        size, options = (1, module.in_channels, *spatial), (module.in_channels, module.out_channels, module.kernel_size)
    with Watch() as watch, untouched(module, like.device):
        module(torch.zeros(size, device=like.device, dtype=like.dtype))
    _, weight, bias, _ = watch.calls[0]
    names = () if base is nn.Linear else ("stride", "padding", "dilation", "groups", "padding_mode",
                                          *["output_padding"] * (base in TRANSPOSED))
    new = base(*options, bias=bias is not None, device="meta", **{n: getattr(module, n) for n in names})
    new.weight = nn.Parameter(weight.detach().clone())
    new.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return new.train(module.training)


def filters_first(module: nn.Module) -> Tensor:
    """The weight with a row per filter. -> [c_out, c_in / groups, ...]"""
    if not isinstance(module, TRANSPOSED):
        return module.weight
    return module.weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)


def acting(net: nn.Module, name: str, axis: str) -> list[tuple[Tensor, int]]:
    """The weights through which the channels of an axis act, and which of their dimensions that is."""
    if axis.isdigit():                                            # a factor per channel is silent if its readers are
        tensor = getattr(*owner(net, name))
        return [(tensor, int(axis))] if sum(n > 1 for n in tensor.shape) > 1 else []
    module = net.get_submodule(name)
    return [(getattr(module, tensor), dim) for tensor, dim in _parts(module, axis) if tensor in ("weight", "bias")]


def cut(net: nn.Module, name: str, axis: str, stay: Tensor) -> None:
    """In place: only the channels `stay` (indices) of an axis are left."""
    if axis.isdigit():
        shrink(*owner(net, name), int(axis), stay)
        return
    module = net.get_submodule(name)
    counts = [count for count in COUNTS[axis] if hasattr(module, count)]
    for tensor, dim in _parts(module, axis):
        shrink(module, tensor, dim, stay)
    for groups in ("groups", "num_groups"):
        if axis == "out" and getattr(module, groups, 1) > 1:      # whole groups go
            setattr(module, groups, getattr(module, groups) * len(stay) // getattr(module, counts[0]))
    for count in counts:
        setattr(module, count, len(stay))


def _parts(module: nn.Module, axis: str) -> list[tuple[str, int]]:
    """The tensors of a module that have an entry per channel of an axis, and along which dimension."""
    dense, flipped = module_groups(module) == 1, isinstance(module, TRANSPOSED)
    if axis == "in":
        return [("weight", 0 if flipped else 1)] if dense or flipped else []
    found = [("weight", int(flipped))] if dense or not flipped else []
    found += [(name, 0) for name in ("bias", "running_mean", "running_var")]
    return [(name, dim) for name, dim in found if isinstance(getattr(module, name, None), Tensor)]


def module_groups(module: nn.Module) -> int:
    """Of a conv; any other module has one."""
    return getattr(module, "groups", 1)


def owner(net: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Of a parameter or buffer: the module that holds it, and its name there."""
    parent, _, name = path.rpartition(".")
    return net.get_submodule(parent), name


def shrink(module: nn.Module, name: str, dim: int, stay: Tensor) -> None:
    old = getattr(module, name)
    new = old.detach().index_select(dim, stay.to(old.device))
    if old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
        new = new.contiguous(memory_format=torch.channels_last)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)
