"""Big images: a tree `train/<class>/*`, `val/<class>/*`, decoded by worker processes. `val/` is the TEST set here.

As usual for ImageNet, the published validation set is what papers report; it is never used to select anything, so the
held-out part comes out of train/.
"""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from reprune.data.base import Data
from reprune.data.files import data_folder, photo
from reprune.data.normalize import Normalize, constants, moments
from reprune.data.sampler import EpochSampler, Resumable, generator
from reprune.data.split import split
from reprune.errors import UserError


class Photos(Dataset):
    """Item (position, seed) -> (uint8 [H, W, 3], label). The transform sees a random state made of that seed alone."""

    def __init__(self, samples: list[tuple[str, int]], transform):
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, int]:
        position, seed = item
        path, label = self.samples[position]
        image = photo(path)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would reseed the GPU as well
            image = self.transform(image)
        return torch.from_numpy(np.array(image)), label


class FolderLoader(Resumable):
    """Normalises the workers' uint8 batches on the device: a quarter of the bytes travels between processes."""

    batch_sampler = None  # Lightning reads it from whatever has a `sampler`

    def __init__(self, loader: DataLoader, normalize: Normalize, device):
        self.loader, self.normalize, self.device = loader, normalize, device
        self.sampler = loader.sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        try:
            self.done = getattr(self.sampler, "resume_at", 0)  # a fixed order has none
            for x, y in self.loader:  # workers start at the first batch, see EpochSampler
                self.done += 1
                yield self.normalize(x.to(self.device, non_blocking=True)), y.to(self.device, non_blocking=True)
        except UserError as error:  # a worker's error arrives with its traceback in the text: keep the last line
            raise UserError(str(error).strip().splitlines()[-1].split("UserError: ")[-1]) from None


class FolderData(Data):
    """samples: {"train": [(path, label), ..], "test": [..]}."""

    def __init__(self, samples: dict[str, list], workers: int, **fields):
        super().__init__(**fields)
        self._samples, self.workers = samples, workers

    def _loader(self, source, rows, batch_size, device, sampler: EpochSampler | None = None) -> FolderLoader:
        samples = [self._samples[source][row] for row in rows.tolist()]
        photos = Photos(samples, transform(self.size, augmented=sampler is not None))
        loader = DataLoader(
            photos, batch_size, sampler=sampler or [(i, 0) for i in range(len(photos))], num_workers=self.workers,
            persistent_workers=self.workers > 0, pin_memory=torch.device(device).type == "cuda",
            generator=generator(0),  # else DataLoader draws a seed from the global generator
        )
        return FolderLoader(loader, Normalize(self.mean, self.std, self.size, device), device)


def transform(size: int, augmented: bool) -> T.Compose:
    """PIL -> PIL [size, size]: the torchvision recipe for ImageNet."""
    if augmented:
        return T.Compose([T.RandomResizedCrop(size), T.RandomHorizontalFlip()])
    return T.Compose([T.Resize(size * 256 // 224), T.CenterCrop(size)])


def imagefolder(name: str, channels: int, classes: int, size: int, data_dir: str, normalize: str, val_size: int,
                split_seed: int, limit: int | None, workers: int) -> FolderData:
    """data_dir: the folder that holds train/ and val/, each with one folder of images per class."""
    if channels != 3:
        raise UserError(f"dataset {name}: images are read as RGB, so channels must be 3, not {channels}")
    if workers < 0 or size < 1:
        raise UserError(f"dataset {name}: workers is {workers} and size is {size}; use workers >= 0, size >= 1")
    train, test = _trees(name, data_folder(name, data_dir), classes)
    parts = split(name, torch.tensor(train.targets), len(test), val_size, split_seed, limit)
    samples = {"train": train.samples, "test": test.samples}

    def own() -> tuple[tuple, tuple]:  # of 500 centre crops: a whole tree would take hours, and moves the third digit
        some = parts.train[torch.randperm(len(parts.train), generator=generator(split_seed, 2))[:500]].tolist()
        photos = Photos([train.samples[row] for row in some], transform(size, augmented=False))
        return moments(torch.stack([photos[i, 0][0] for i in range(len(photos))]))

    mean, std = constants(name, normalize, channels, own)
    return FolderData(samples, workers, name=name, channels=channels, classes=classes, size=size, mean=mean, std=std,
                      parts=parts)


def _trees(name: str, root: Path, classes: int) -> tuple[ImageFolder, ImageFolder]:
    """The trees train/ and val/, with equal class lists (else the labels of one would be shifted)."""
    absent = [part for part in ("train", "val") if not (root / part).is_dir()]
    if absent:
        raise UserError(f"dataset {name}: {root} has no {' and no '.join(f'{part}/' for part in absent)}; set data_dir "
                        "to a folder with train/<class>/* and val/<class>/* (val/ is used as the test set)")
    try:
        train, test = (ImageFolder(root / part) for part in ("train", "val"))
    except OSError as error:  # no class folders, one without images, or not to be read
        raise UserError(f"dataset {name}: {str(error).splitlines()[0]} (in {root})") from error
    if train.classes != test.classes:
        different = sorted(set(train.classes) ^ set(test.classes))
        raise UserError(f"dataset {name}: train/ and val/ in {root} differ in classes: {', '.join(different[:5])}")
    if len(train.classes) != classes:
        raise UserError(f"dataset {name}: {root} has {len(train.classes)} classes, the config says {classes}; "
                        f"set dataset.classes={len(train.classes)}")
    return train, test
