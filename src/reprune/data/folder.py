"""Big images: a tree `train/<class>/*`, `val/<class>/*` (tree.py), decoded by worker processes."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2 as T

from reprune.data.base import Data
from reprune.data.decode import pixels
from reprune.data.normalize import Normalize, constants, moments
from reprune.data.sampler import EpochSampler, Resumable, generator
from reprune.data.split import split
from reprune.data.tree import trees
from reprune.errors import UserError

UNREADABLE = ("stop", "skip")


class Photos(Dataset):
    """Item (position, seed) -> (uint8 [H, W, 3], label). The transform sees a random state made of that seed alone.

    skip: an image that cannot be read is what there is to say of it, and no error.
    """

    def __init__(self, samples: list[tuple[str, int]], transform, skip: bool = False):
        self.samples, self.transform, self.skip = samples, transform, skip

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int] | str:
        position, seed = item
        path, label = self.samples[position]
        try:
            image = pixels(path)
        except UserError as error:
            if self.skip:
                return str(error)
            raise
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would reseed the GPU as well
            image = self.transform(image)
        return image.permute(1, 2, 0), label


def collate(items: list) -> tuple[list, list[str]]:
    """The batch of those that could be read, [] if there are none, and what there is to say of the others."""
    read = [item for item in items if not isinstance(item, str)]
    return default_collate(read) if read else [], [item for item in items if isinstance(item, str)]


class FolderLoader(Resumable):
    """Normalises the workers' uint8 batches on the device: a quarter of the bytes travels between processes.

    left_out: gets every image that cannot be read, and says so at its first time.
    """

    batch_sampler = None  # Lightning reads it from whatever has a `sampler`

    def __init__(self, loader: DataLoader, normalize: Normalize, device, left_out: set[str]):
        self.loader, self.normalize, self.device = loader, normalize, device
        self.sampler, self.left_out = loader.sampler, left_out

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        try:
            self.done = getattr(self.sampler, "resume_at", 0)  # a fixed order has none
            for batch, unread in self.loader:  # workers start at the first batch, see EpochSampler
                self._leave_out(unread, empty=not batch)
                self.done += 1
                x, y = batch
                yield self.normalize(x.to(self.device, non_blocking=True)), y.to(self.device, non_blocking=True)
        except UserError as error:  # a worker's error arrives with its traceback in the text: keep the last line
            raise UserError(str(error).strip().splitlines()[-1].split("UserError: ")[-1]) from None

    def _leave_out(self, unread: list[str], empty: bool) -> None:
        for line in unread:
            if line not in self.left_out:
                self.left_out.add(line)
                print(f"{line}; it is left out", flush=True)
        if empty:
            raise UserError(f"{unread[0]}, and none of the {len(unread)} of its batch can be read")


class FolderData(Data):
    """samples: {"train": [(path, label), ..], "test": [..]}. left_out: what there is to say of images that could not be
    read; this process has met them, so those that others have met in its place are not among them."""

    def __init__(self, samples: dict[str, list], workers: int, skip: bool, **fields):
        super().__init__(**fields)
        self._samples, self.workers, self.skip = samples, workers, skip
        self.left_out: set[str] = set()

    def _loader(self, source, rows, batch_size, device, sampler: EpochSampler | None = None) -> FolderLoader:
        samples = [self._samples[source][row] for row in rows.tolist()]
        photos = Photos(samples, transform(self.size, augmented=sampler is not None), self.skip)
        loader = DataLoader(
            photos, batch_size, sampler=sampler or [(i, 0) for i in range(len(photos))], num_workers=self.workers,
            persistent_workers=self.workers > 0, pin_memory=torch.device(device).type == "cuda", collate_fn=collate,
            generator=generator(0),  # else DataLoader draws a seed from the global generator
        )
        return FolderLoader(loader, Normalize(self.mean, self.std, self.size, device), device, self.left_out)


def transform(size: int, augmented: bool) -> T.Compose:
    """uint8 [3, H, W] -> [3, size, size]: the torchvision recipe for ImageNet. Evaluation resizes as Pillow does, as
    published weights were measured; training as tensors do, which is faster, and up to 2 of 255 levels away."""
    if augmented:
        return T.Compose([T.RandomResizedCrop(size, antialias=True), T.RandomHorizontalFlip()])
    return T.Compose([T.ToPILImage(), T.Resize(size * 256 // 224), T.CenterCrop(size), T.PILToTensor()])


def imagefolder(name: str, channels: int, classes: int, size: int, data_dir: str, normalize: str, val_size: int,
                split_seed: int, limit: int | None, workers: int, test: str = "val", complete: dict | None = None,
                unreadable: str = "stop") -> FolderData:
    """data_dir: the folder that holds train/ and val/, each with one folder of images per class."""
    if channels != 3:
        raise UserError(f"dataset {name}: images are read as RGB, so channels must be 3, not {channels}")
    if workers < 0 or size < 1:
        raise UserError(f"dataset {name}: workers is {workers} and size is {size}; use workers >= 0, size >= 1")
    if unreadable not in UNREADABLE:
        raise UserError(f"dataset {name}: unreadable is {unreadable!r}; use {' or '.join(UNREADABLE)}")
    train, held = trees(name, data_dir, classes, test, complete)
    parts = split(name, torch.tensor(train.targets), len(held), val_size, split_seed, limit)
    samples = {"train": train.samples, "test": held.samples}

    def own() -> tuple[tuple, tuple]:  # of 500 centre crops: a whole tree would take hours, and moves the third digit
        some = parts.train[torch.randperm(len(parts.train), generator=generator(split_seed, 2))[:500]].tolist()
        photos = Photos([train.samples[row] for row in some], transform(size, augmented=False), unreadable == "skip")
        batch, unread = collate([photos[i, 0] for i in range(len(photos))])
        if not batch:
            raise UserError(unread[0])
        return moments(batch[0])

    mean, std = constants(name, normalize, channels, own)
    return FolderData(samples, workers, unreadable == "skip", name=name, channels=channels, classes=classes, size=size,
                      mean=mean, std=std, parts=parts)
