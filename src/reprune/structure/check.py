"""Does a smaller net say what the silenced one says? Both see one random image, and all their layers are compared.

A layer's output is compared by one number per channel, a random sum over its positions: the feature maps of a large
image would take as much memory as training does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from reprune.errors import UserError
from reprune.structure.examples import arguments, copied, device_of, each
from reprune.structure.groups import Trace, kept, traced
from reprune.structure.modes import untouched
from reprune.structure.recorder import flat_graph

Said = list[tuple[str, Tensor]]
"""What a net says while it runs: (layer, number per channel), in order of execution, then its outputs."""


class RemovalError(UserError):
    """A smaller net that would not say what the silenced one says; the message names the first layer that does not."""


def verify(net: nn.Module, silent: AbstractContextManager, smaller: nn.Module, keep: Tensor) -> None:
    """Raises RemovalError unless `smaller` equals `net` in the context `silent`, up to rounding. Both nets stay as they
    are. keep: bool [atoms], see `Trace.keep`."""
    trace, wanted, got = traced(net), [], []
    inputs = random_inputs(trace, net)
    if (device := device_of(inputs)).type == "meta":    # there are no numbers that could be wrong
        return
    stay = {name: kept(atoms, keep) for (name, axis), atoms in trace.axes.items() if axis == "out"}
    with untouched(net, device), silent:
        _run(net, inputs, stay, wanted)
    failed = None
    with untouched(smaller, device):
        try:
            _run(smaller, inputs, dict.fromkeys(stay), got)
        except Exception as error:                                # whatever the forward code makes of it
            failed = error
    if found := _first_difference(wanted, got, failed):
        layer, how = found
        why = "a part of a split is left without channels: keep a filter of each part" if trace.empties(keep) else \
            "the forward code before it depends on its channels in a way that is not followed: keep the filters that " \
            "reach it"
        raise RemovalError(
            f"removing these filters would make a wrong {type(net).__name__}: the output of {layer} is the first that "
            f"is not the silenced net's ({how}); {why} (check=False gives out the net as it is)") from failed


def random_inputs(trace: Trace, net: nn.Module) -> Any:
    """As those that were traced, where the net is now. Not zeros: they hide what is multiplied by them."""
    params, generator = list(net.parameters()), torch.Generator().manual_seed(0)
    devices, dtypes = [p.device for p in params], [p.dtype for p in params]
    device = trace.device if trace.device in devices or not params else devices[0]

    def like(t: Tensor) -> Tensor:
        if not t.dtype.is_floating_point:                         # pixels
            return torch.randint(128 if t.dtype != torch.bool else 2, t.shape, generator=generator).to(device, t.dtype)
        dtype = t.dtype if t.dtype in dtypes or not params else dtypes[0]
        return torch.randn(t.shape, generator=generator).to(device, dtype)

    return each(trace.example, like)


def net_graph(net: nn.Module) -> fx.GraphModule:
    """The code of a traced net as one graph of layers and functions."""
    inputs = random_inputs(traced(net), net)
    with untouched(net, device_of(inputs)):
        return flat_graph(net, *arguments(inputs))


def _run(net: nn.Module, inputs: Any, stay: Mapping[str, Tensor | None], said: Said) -> None:
    """Adds to `said`, also where the net fails on the way. stay: layer -> which of its channels are compared."""
    sums: dict[int, Tensor] = {}                                  # number of positions -> their factors

    def listen(name: str, channels: Tensor | None):
        def hook(module: nn.Module, _: tuple, out: Tensor) -> None:
            rows = out.movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
            rows = rows.reshape(len(rows), -1)                    # [C, positions]
            n = rows.shape[1]
            if n not in sums:
                sums[n] = (torch.randn(n, generator=torch.Generator().manual_seed(n)) / n**0.5).to(rows.device)
            exact = torch.promote_types(out.dtype, torch.float32)
            numbers = (rows.to(exact) @ sums[n].to(exact)).to(out.dtype)
            said.append((name, numbers if channels is None else numbers[channels.to(numbers.device)]))
        return hook

    hooks = [net.get_submodule(name).register_forward_hook(listen(name, channels)) for name, channels in stay.items()]
    try:
        args, kwargs = arguments(copied(inputs))                  # some nets work in place
        outputs = net(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    said += [("the net", leaf) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _first_difference(wanted: Said, got: Said, failed: Exception | None) -> tuple[str, str] | None:
    """-> the layer and what is wrong with it; None where there is nothing."""
    eps = 0.0
    for at, (layer, a) in enumerate(wanted):
        if at == len(got):
            return layer, f"does not run: {(str(failed) or type(failed).__name__).splitlines()[0]}"
        eps = max(eps, _eps(a))                                   # what one layer rounds stays rounded
        name, b = got[at]
        if name != layer or a.shape != b.shape:
            return layer, f"instead, {name} puts out {list(b.shape)}, not {list(a.shape)}"
        error, size = (torch.cat([v.double().abs().flatten(), v.new_zeros(1)]).max().item() for v in (a - b, a))
        if not error <= eps**0.5 / 3 * size:                      # float32: 1e-4, where rounding makes 2e-6
            return layer, "not finite" if math.isnan(error) else \
                f"numbers of up to {size:.2g} differ by {error:.2g}"
    return None


def _eps(a: Tensor) -> float:
    """Of the arithmetic that the numbers come from; GPUs may multiply float32 with the ten bits of TF32."""
    if not a.is_floating_point():
        return 0.0
    return torch.finfo(torch.half if a.dtype == torch.float32 and a.device.type != "cpu" else a.dtype).eps
