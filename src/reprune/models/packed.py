"""A net as few bytes and back: safetensors as in checkpoint.py, with the weights of conv and linear layers in a code.

    header          of checkpoint.py: the net is built from it, and the order of its state dict is that of the file
    <field>         of each such weight, one after the other, what the code says under this name
    counts          how many entries of each field a weight has, int32 [weights, fields in alphabetic order]
    floats, whole   all other tensors of the state dict, one after the other, float32 and int64

No tensor has a name or an entry of its own in the file: of a small net these would be the larger part.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.files import replacing
from reprune.models.checkpoint import header_of, rebuilt
from reprune.models.header import check_length, parse
from reprune.structure.layers import PRODUCERS

Parts = dict[str, Tensor]
"""What a code makes of one weight: field -> [n], always of the same fields, each of the same dtype."""


class Packed:
    """A codec: of what `encode` writes `decode` makes the same net, bit for bit. Subclasses code a weight."""

    def pack(self, weight: Tensor) -> Parts:
        raise TypeError(f"{type(self).__name__} must define pack(weight) and unpack(parts, shape)")

    def unpack(self, parts: Parts, shape: torch.Size) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define pack(weight) and unpack(parts, shape)")

    def encode(self, net: nn.Module, file: Path) -> None:
        """Writes `file` in one step."""
        coded, state = _weights(net), {name: t.detach().cpu() for name, t in net.state_dict().items()}
        packed = [self.pack(state[name]) for name in coded]
        fields = sorted(packed[0])
        others = [t.flatten() for name, t in state.items() if name not in coded]
        tensors = {field: torch.cat([parts[field] for parts in packed]) for field in fields}
        tensors["counts"] = torch.tensor([[len(parts[f]) for f in fields] for parts in packed], dtype=torch.int32)
        for name, floating, dtype in (("floats", True, torch.float32), ("whole", False, torch.int64)):
            some = [t.to(dtype) for t in others if t.is_floating_point() == floating]
            tensors[name] = torch.cat([torch.empty(0, dtype=dtype), *some])
        with replacing(Path(file)) as part:
            save_file(tensors, part, {"reprune": header_of(net)})

    def decode(self, file: Path) -> nn.Module:
        """The net, in eval mode. Raises UserError for a file that is no such one, or damaged."""
        try:
            check_length(Path(file))
            with safe_open(str(file), "pt") as held:
                header = parse((held.metadata() or {}).get("reprune", "null"))
                tensors = {name: held.get_tensor(name) for name in held.keys()}          # noqa: SIM118  (it is no dict)
            net = rebuilt(header)
            state = dict(self._state(net, tensors))
            net = net.to_empty(device="cpu")
            net.load_state_dict(state)
        except Exception as error:                                # a stranger's file can end in nearly any
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{file}: refused, no net coded by {type(self).__name__} ({reason:.200})") from error
        return (net.to(memory_format=torch.channels_last) if header["channels_last"] else net).eval()

    def _state(self, net: nn.Module, tensors: Parts) -> Iterator[tuple[str, Tensor]]:
        """What the file holds, by name."""
        coded, counts, state, rest = _weights(net), tensors.pop("counts"), net.state_dict(), {}
        for floating, name in ((True, "floats"), (False, "whole")):
            some = {n: t.numel() for n, t in state.items() if n not in coded and t.is_floating_point() == floating}
            rest |= dict(zip(some, tensors.pop(name).split([*some.values()]), strict=True))
        fields = {field: tensors[field].split(sizes)
                  for field, sizes in zip(sorted(tensors), counts.T.tolist(), strict=True)}
        for name, meta in state.items():
            if name in coded:
                parts = {field: each[coded.index(name)] for field, each in fields.items()}
                yield name, self.unpack(parts, meta.shape)
            else:
                yield name, rest[name].view(meta.shape)


def _weights(net: nn.Module) -> list[str]:
    """The names of what is coded, in the order of the state dict."""
    layers = {f"{name}.weight" for name, module in net.named_modules() if isinstance(module, PRODUCERS)}
    return [name for name in net.state_dict() if name in layers]
