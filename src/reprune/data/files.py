"""Folders and images that somebody else has put there: read, or one line that names them."""

import os
from pathlib import Path

from PIL import Image

from reprune.errors import UserError

DEEP = ("I", "F")       # how the modes of Pillow begin that have more than 8 bits: RGB would cut them off at 255
NARROW = 100            # times as long as wide


def data_folder(name: str, data_dir: str | None) -> Path:
    """Where the dataset `name` is looked for; it need not be there yet. UserError: a file, or not to be read."""
    root = Path(os.path.expanduser(data_dir or "data"))
    try:
        root = root.resolve()
        there = next(path for path in (root, *root.parents) if path.exists())
        found = None if there.is_dir() else f"{there} is a file"
    except (OSError, RuntimeError) as error:            # no permission; links in a circle
        found = str(error)
    if found:
        raise UserError(f"dataset {name}: data_dir={data_dir} is no folder ({found}); set data_dir=FOLDER or the "
                        "environment variable DATA_DIR")
    return root


def photo(path: str | Path) -> Image.Image:
    """The image as RGB, whatever channels it has. UserError: damaged, too large (Pillow's limit), too narrow (its short
    side is scaled up), not of 8 bits."""
    try:
        with Image.open(path) as file:
            if file.mode.startswith(DEEP):
                raise ValueError(f"its pixels ({file.mode}) have more than 8 bits; convert it")
            if max(file.size) > NARROW * min(file.size):
                raise ValueError(f"{file.size[0]} x {file.size[1]} pixels are too narrow for a square")
            return file.convert("RGB")
    except Exception as error:                          # whatever a damaged file makes of the decoders
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read image {path}: {reason}") from error
