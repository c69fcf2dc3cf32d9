"""A tree of small images, all of one size, read into memory: CIFAR-100 as folders of PNGs, for one."""

import torch
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from reprune.data.files import photo
from reprune.data.small import _data
from reprune.data.tensor import TensorData
from reprune.data.tree import trees
from reprune.errors import UserError


def smallfolder(name: str, data_dir: str, classes: int, size: int, test: str = "val", complete: dict | None = None,
                **knobs) -> TensorData:
    """data_dir: the folder that holds train/ and the one called `test`, each with one folder of images per class."""
    parts = trees(name, data_dir, classes, test, complete)
    return _data(*(_read(name, part, size) for part in parts), name=name, classes=classes, size=size, **knobs)


def _read(name: str, part: ImageFolder, size: int) -> tuple[Tensor, Tensor]:
    """-> pixels uint8 [N, size, size, 3], labels int64 [N]"""
    pixels = torch.empty(len(part), size, size, 3, dtype=torch.uint8)
    for row, (path, _) in enumerate(part.samples):
        image = photo(path)
        if image.size != (size, size):
            raise UserError(f"dataset {name}: {path} has {image.width}x{image.height} pixels, not {size}x{size}")
        pixels[row] = pil_to_tensor(image).permute(1, 2, 0)
    return pixels, torch.tensor(part.targets)
