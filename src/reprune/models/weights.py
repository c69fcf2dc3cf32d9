"""Trained weights from a file into a net, without ever running what the file says."""

from __future__ import annotations

import mmap
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.models.header import check_length

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)      # of trained weights

# Heads that torchvision's published GoogLeNet and Inception v3 files hold and our nets leave out (torchvision_zoo.py).
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def load_weights(net: nn.Module, path: str | Path) -> nn.Module:
    """Fill `net` (in place, also returned) with the weights in `path`, all of them or none.

    `path` is a .safetensors file or one written by `torch.save`: a state_dict, alone or under "state_dict" or "model";
    `module.` prefixes (DataParallel) are stripped. BN's `num_batches_tracked` may be absent, as in old files.

    UserError: no such file; a pickle that holds more than tensors (refused, nothing is executed); an unreadable file;
    tensors that do not match the net one to one in name and shape, or that are no trained weights (whole or complex
    numbers, NaN, infinite). The net is then unchanged.
    """
    file = Path(os.path.expanduser(str(path)))
    if not file.is_file():
        raise UserError(f"no weights at {path} (looked for {file.absolute()}); check model.weights")
    state = _state_dict(_read(file), file)
    state = {k: v for k, v in state.items() if not k.startswith(AUXILIARY) or k in net.state_dict()}
    _check_match(net, state, file)
    _check_numbers(net, state, file)
    net.load_state_dict(state, strict=False)        # strict but for num_batches_tracked: checked above
    return net


def _read(file: Path) -> object:
    """What the file holds, read by loaders that build tensors and plain containers only."""
    try:
        if file.suffix == ".safetensors":
            check_length(file)
            return load_file(file)
        _check_size(file)
        with warnings.catch_warnings():    # torch comments on odd files; ours is the one line below
            warnings.simplefilter("ignore")
            return torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:     # what weights_only raises for anything that is not plain data
        raise UserError(f"refused {file}: its pickle holds more than tensors, which could run code, or is damaged "
                        "(nothing was executed); save a plain state_dict or safetensors instead") from error
    except Exception as error:                  # a damaged file can end in nearly any exception of the readers
        reason = str(error).split("\n")[0].split(". ")[0][:200]
        raise UserError(f"cannot read the weights in {file}: corrupted, cut off or not a checkpoint "
                        f"({type(error).__name__}: {reason})") from error


def _check_size(file: Path) -> None:
    """Raises ValueError or UnpicklingError for a small file that would become a large one in memory: torch.save
    compresses nothing, and a state_dict holds no bytes, which a pickle makes out of a number."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        if any(e.compress_type for e in entries) or sum(e.file_size for e in entries) > file.stat().st_size:
            raise ValueError("an archive that grows when it is read; torch.save compresses nothing")
    with file.open("rb") as opened:
        if opened.read(1) == b"\0":                               # a hole, mostly: all of it need not be looked at
            raise ValueError("neither an archive nor a pickle")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if any(content.find(f"\n{function}\n".encode()) >= 0 for function in ("bytearray", "encode")):
            raise pickle.UnpicklingError("bytes")


def _state_dict(content: object, file: Path) -> dict[str, Tensor]:
    """The tensors by name, unwrapped from "state_dict" or "model" and from DataParallel's `module.`."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{file} holds no state_dict, neither alone nor under 'state_dict' or 'model'")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            shown = f"{name!r:.100}" if isinstance(name, str) else f"named by a {type(name).__name__}"
            raise UserError(f"{file} holds no plain state_dict: its entry {shown} is not a named tensor")
        if value.layout != torch.strided or value.is_meta:
            what = "has no numbers (it was saved from the meta device)" if value.is_meta else f"is {value.layout}"
            raise UserError(f"{file}: {name!r:.100} {what}; save the dense tensors of the trained net")
    return {k.removeprefix("module."): v for k, v in content.items()}


def _check_match(net: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """UserError unless names and shapes agree, `num_batches_tracked` aside."""
    wanted = net.state_dict()
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in wanted]
    wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    findings = []
    if missing:
        findings.append(f"{len(missing)} missing (first: {missing[0]})")
    if unexpected:
        name = unexpected[0].encode("unicode_escape")[:100].decode()      # a name may have many lines
        findings.append(f"{len(unexpected)} unexpected (first: {name})")
    if wrong:
        have, want = list(state[wrong[0]].shape), list(wanted[wrong[0]].shape)
        findings.append(f"{len(wrong)} of another shape (first: {wrong[0]} is {have}, the net wants {want})")
    if findings:
        raise UserError(f"{file} does not fit this net, it seems to be of another architecture or number of classes: "
                        f"{', '.join(findings)}, of {len(wanted)} tensors")


def _check_numbers(net: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """UserError where a tensor is not of floating point, or is not finite in the precision of the net."""
    bad = {}
    for name, wanted in net.state_dict().items():
        if name in state and (wanted.is_floating_point() or state[name].is_complex()):
            if state[name].dtype not in DTYPES:
                raise UserError(f"{file}: {name} holds {state[name].dtype}, no trained weights; save them in one of "
                                f"{', '.join(map(str, DTYPES))}")
            if not (finite := state[name].to(wanted.dtype).isfinite()).all():
                bad[name] = int((~finite).sum())
    if bad:
        name, n = next(iter(bad.items()))
        more = f" ({len(bad) - 1} more tensors hold some, too)" if len(bad) > 1 else ""
        raise UserError(f"{file}: {name} holds {n} NaN or infinite numbers of {state[name].numel()}{more}: the "
                        "training that made it diverged, or the file is damaged")
