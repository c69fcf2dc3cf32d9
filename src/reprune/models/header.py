"""What a checkpoint says of itself, read as a stranger's: bounded before anything is built or allocated for it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reprune.errors import UserError

FORMAT = "reprune/1"
TEXT = 4 * 2**20                        # characters of JSON: several times what the largest nets and many rounds need
IMAGE = 2**24                           # numbers in one input image: a colour photo of 2300 x 2300 pixels
COUNT = 10**5                           # filters of a layer, classes
FLOATS = ("F16", "BF16", "F32", "F64")  # as safetensors names them

Held = dict[str, tuple[str, list[int]]]
"""The tensors of a file: name -> dtype, shape."""


def read_header(path: str | Path) -> dict:
    """The metadata of a checkpoint: model, input_shape, history, channels_last, and gates of a dynamic net.

    Raises UserError for a file that is missing, no safetensors file, or not of this program."""
    return read(path)[0]


def read(path: str | Path) -> tuple[dict, Held]:
    """As `read_header`, and the tensors that the file holds."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path.absolute()}; a run leaves it in <output_dir>/<key>/net.safetensors")
    try:
        check_length(path)
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get("reprune", "null")
            slices = {name: file.get_slice(name) for name in file.keys()}      # noqa: SIM118  (it is no dict)
            held = {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: refused, not a readable safetensors file ({_line(error)}); pickled checkpoints "
                        "are not loaded here, give trained weights of a known net as model.weights=FILE") from error
    try:
        return parse(text), held
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: refused, a safetensors file that was not written by reprune.save ({FORMAT}): "
                        f"{_line(error)}") from error


def check_length(path: Path) -> None:
    """Raises ValueError where the head of a safetensors file is longer than any net needs; its reader takes 100 MB."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > 2 * TEXT:
        raise ValueError(f"its header would have {length:,} bytes, more than {2 * TEXT:,}")


def parse(text: str) -> dict:
    """The header in some JSON. Raises ValueError or RecursionError where it is not as `save` writes it."""
    _need(len(text) <= TEXT, f"a header of {len(text):,} characters, more than {TEXT:,}")
    header = json.loads(text)
    _need(isinstance(header, dict) and header.get("format") == FORMAT, "another format")
    for field, kind in {"model": dict, "input_shape": list, "history": list, "channels_last": bool}.items():
        _need(isinstance(header.get(field), kind), f"{field} is not a {kind.__name__}")
    for name, value in header["model"].items():
        _need(name == "_target_" or len(name) <= 100 and _is_plain(value), f"model.{name:.100} is no plain value")
    shape = header["input_shape"]
    _need(not shape or len(shape) == 3 and all(_is_count(n) and n for n in shape) and math.prod(shape) <= IMAGE,
          f"input_shape {str(shape):.100} is not [channels, height, width] of an image")
    gates = header.get("gates")
    _need(gates is None or not header["history"] and isinstance(gates, dict) and gates.keys() == {"squeeze_rate"}
          and _is_count(gates["squeeze_rate"]) and gates["squeeze_rate"] > 0, "gates are not a squeeze_rate alone")
    for plan in header["history"]:
        _need(isinstance(plan, dict) and all(isinstance(gone, list) for gone in plan.values()), "a plan is no mapping")
        for group, gone in plan.items():
            _need(all(map(_is_count, gone)) and len(set(gone)) == len(gone),
                  f"the filters removed from {group!r:.100} are not different whole numbers from 0 up")
    return header


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _need(true: bool, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= COUNT


def _is_plain(value: Any) -> bool:
    return isinstance(value, float | None) or (isinstance(value, str) and len(value) <= 200) or \
        (isinstance(value, int) and abs(value) <= COUNT)
