"""TinyImageNet-200 as its archive unpacks: train/<wnid>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt.

`val/` is the TEST set here: the labels of test/ are not public, so papers report val/. Nothing is selected on it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reprune.data.files import data_folder, photo
from reprune.errors import UserError

SIDE = 64       # pixels
ARCHIVE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def read(data_dir: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """data_dir/tiny-imagenet-200 -> train/ and val/, each as (pixels uint8 [N, 64, 64, 3], labels int64 [N]).

    Labels number the wnids of train/ in sorted order. UserError: files that are missing, unreadable or of another size.
    """
    root = data_folder("tinyimagenet", data_dir) / "tiny-imagenet-200"
    wanted = [root / "train", root / "val" / "images", root / "val" / "val_annotations.txt"]
    if missing := [path for path in wanted if not path.exists()]:
        raise UserError(f"dataset tinyimagenet: {missing[0]} is missing; unpack {ARCHIVE} into a folder and set "
                        "data_dir=FOLDER or the environment variable DATA_DIR to it")
    wnids = sorted(folder.name for folder in wanted[0].iterdir() if folder.is_dir())
    labels = {wnid: number for number, wnid in enumerate(wnids)}
    train, val = list(_train(wanted[0], labels)), list(_val(*wanted[1:], labels))
    if not (train and val):
        raise UserError(f"dataset tinyimagenet: {root} is empty; unpack {ARCHIVE} again")
    return _decode(train), _decode(val)


def _train(folder: Path, labels: dict[str, int]) -> Iterator[tuple[Path, int]]:
    """(image, label) of every training image, class by class."""
    for wnid, label in labels.items():
        images = sorted((folder / wnid / "images").glob("*.JPEG"))
        if not images:
            raise UserError(f"dataset tinyimagenet: {folder / wnid} holds no images/*.JPEG; unpack {ARCHIVE} again")
        yield from ((path, label) for path in images)


def _val(folder: Path, annotations: Path, labels: dict[str, int]) -> Iterator[tuple[Path, int]]:
    """(image, label) in the order of the annotations, whose lines are: file, wnid, bounding box."""
    for line in annotations.read_text(encoding="utf-8", errors="replace").splitlines():
        file, wnid = (line.split() + ["", ""])[:2]
        if wnid not in labels:
            raise UserError(f"dataset tinyimagenet: {annotations}: no class of train/ in the line {line!r:.60}")
        yield folder / file, labels[wnid]


def _decode(samples: list[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
    """The whole part in memory: the 100,000 training images are 1.2 GB, read in about half a minute."""
    paths, labels = zip(*samples, strict=True)
    pixels = np.empty((len(paths), SIDE, SIDE, 3), np.uint8)
    for row, path in enumerate(paths):              # one thread: the images are too small for several to be faster
        pixels[row] = _image(path)
    return torch.from_numpy(pixels), torch.tensor(labels)


def _image(path: Path) -> np.ndarray:
    image = np.asarray(photo(path))                         # a few are grey
    if image.shape != (SIDE, SIDE, 3):
        raise UserError(f"dataset tinyimagenet: {path} has {image.shape[1]}x{image.shape[0]} pixels, not {SIDE}x{SIDE}")
    return image
