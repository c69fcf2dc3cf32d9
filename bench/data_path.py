"""Images per second of the data path: ours against torchvision's, side by side on CIFAR-10 shapes.

    python bench/data_path.py          reads CIFAR-10 from DATA_DIR when it is there, else random images of that shape

All do the same work: random crop of 32x32 from 40x40 and mirroring, per image, normalised float32 batches of 128.
torchvision's, in a DataLoader: CIFAR10 + RandomCrop, RandomHorizontalFlip, ToTensor, Normalize on PIL images; and
transforms v2 on the pixels as uint8 tensors. Rounds take turns (A B A B ..), the table gives medians; worker start-up
is not counted. Ours runs in one thread, which suffices and is steady on a busy machine (two threads wait for each other
there), and so does the process that gathers what workers make.
"""

import os
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from common import at_least, spread, value
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from reprune.data import cifar10
from reprune.data.normalize import OWN
from reprune.data.split import split
from reprune.data.tensor import Images, TensorData

BATCH, ROUNDS, BATCHES = 128, 5, 40                               # batches of a round of torchvision's; ours: an epoch
MEAN, STD = OWN["cifar10"]
OURS = "reprune, uint8 tensors"


def root() -> Path | None:
    """Where CIFAR-10 is, or None."""
    folder = Path(os.environ.get("DATA_DIR", "data"))
    return folder if (folder / "cifar-10-batches-py").exists() else None


def cifar(limit: int | None = None) -> tuple[TensorData, str]:
    """50,000 training images (or `limit`) with pad-and-crop and mirroring, none held out -> data, what they are"""
    fixed = {"name": "cifar10", "channels": 3, "classes": 10, "size": 32}
    if folder := root():
        return cifar10(data_dir=folder, normalize="own", val_size=0, split_seed=0, augment={"pad": 4, "flip": True},
                       limit=limit, **fixed), "CIFAR-10"
    pixels, labels = torch.randint(256, (50_000, 32, 32, 3), dtype=torch.uint8), torch.arange(50_000) % 10
    return TensorData(Images(pixels, labels, pad=4), Images(pixels[:10_000], labels[:10_000]), flip=True, mean=MEAN,
                      std=STD, parts=split("cifar10", labels, 10_000, 0, 0, limit), **fixed), "random"


def pictures() -> CIFAR10:
    """torchvision's data set."""
    steps = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])
    if folder := root():
        return CIFAR10(folder, transform=steps)
    images = CIFAR10.__new__(CIFAR10)                             # its own __getitem__, without the files
    images.data, images.targets = torch.randint(256, (50_000, 32, 32, 3), dtype=torch.uint8).numpy(), [0] * 50_000
    images.transform, images.target_transform = steps, None
    return images


class Stored(Dataset):
    """The same images as tensors, with transforms v2."""

    def __init__(self, images: CIFAR10):
        self.pixels = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()              # [N, 3, 32, 32]
        self.labels = images.targets
        self.transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(),
                                     v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pixels[index]), self.labels[index]


def images_per_second(loader, batches: int) -> float:
    """Rate of `batches` batches, after a first one that starts the workers."""
    stream = iter(loader)
    next(stream)
    start, seen = perf_counter(), 0
    for x, _ in (next(stream) for _ in range(batches)):
        seen += len(x)
    return seen / (perf_counter() - start)


def main() -> list[dict]:
    torch.set_num_threads(1)
    data, images = cifar()
    mine, theirs = data.train(BATCH, seed=0), pictures()
    loaders = {f"torchvision, {name}, {n} workers": DataLoader(source, BATCH, shuffle=True, num_workers=n)
               for name, source in {"PIL": theirs, "v2 on tensors": Stored(theirs)}.items() for n in (0, 2)}
    rates: dict[str, list[float]] = {name: [] for name in (*loaders, OURS)}
    for _ in range(ROUNDS):
        for name, loader in {**loaders, OURS: mine}.items():
            rates[name].append(images_per_second(loader, len(mine) - 2 if loader is mine else BATCHES))
    fastest = max(median(rates[name]) for name in loaders)
    return [{"data path": name, "images/s": round(median(seen)), **spread(seen, 0),
             "times torchvision's fastest": round(median(seen) / fastest, 2), "images": images}
            for name, seen in rates.items()]


def targets(rows: list[dict]) -> list[dict]:
    return [at_least("images per second, times torchvision's fastest",
                     value(rows, "times torchvision's fastest", data_path=OURS), 1)]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
