"""Plain ways to store a net, to hold codes of sparse and shared weights against.

    Stored    safetensors, as `reprune.save` writes them; gzip or zstd of that file, at its highest level: lossless
    Int8      weights of conv and linear layers as steps of 1/127 of the largest of their filter; the rest as it is
"""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.files import replacing
from reprune.models.checkpoint import load, save
from reprune.models.packed import Packed, Parts
from reprune.pruning.allocation import choice

STEPS = 127


class Stored:
    """squeeze: none | gzip | zstd (needs zstandard)"""

    def __init__(self, squeeze: str = "none"):
        choice("method.codec.squeeze", squeeze, ("none", "gzip", "zstd"))
        self.squeeze = squeeze
        if squeeze == "zstd":
            try:
                import zstandard  # here: nothing else needs it
            except ModuleNotFoundError as error:
                raise UserError("method.codec.squeeze=zstd needs zstandard: pip install zstandard") from error
            self.zstd = zstandard

    def encode(self, net: nn.Module, file: Path) -> None:
        """Writes `file` in one step."""
        with TemporaryDirectory() as folder:
            save(net, dense := Path(folder) / "net.safetensors")
            data = dense.read_bytes()
        if self.squeeze == "gzip":
            data = gzip.compress(data, 9, mtime=0)                # no time of day: the same net, the same bytes
        elif self.squeeze == "zstd":
            data = self.zstd.ZstdCompressor(22, write_checksum=True).compress(data)
        with replacing(Path(file)) as part:
            part.write_bytes(data)

    def decode(self, file: Path) -> nn.Module:
        """The net, in eval mode. Raises UserError for a file that is no such one, or damaged."""
        try:
            data = Path(file).read_bytes()
            if self.squeeze != "none":
                data = gzip.decompress(data) if self.squeeze == "gzip" else self.zstd.decompress(data)
            with TemporaryDirectory() as folder:
                (dense := Path(folder) / "net.safetensors").write_bytes(data)
                return load(dense)
        except Exception as error:                                # of three readers
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{file}: refused, no net coded by Stored ({reason:.200})") from error


class Int8(Packed):
    """What it decodes is the rounded net: of that it makes the same file again."""

    def pack(self, weight: Tensor) -> Parts:
        rows = weight.flatten(1)
        scales = rows.abs().amax(1).clamp_min(torch.finfo(rows.dtype).tiny) / STEPS            # [c_out]
        return {"levels": (rows / scales[:, None]).round().to(torch.int8).flatten(), "scales": scales}

    def unpack(self, parts: Parts, shape: torch.Size) -> Tensor:
        return (parts["levels"].view(shape[0], -1).float() * parts["scales"][:, None]).view(shape)
