"""Images per second of the data path: ours against torchvision's, side by side on CIFAR-10 shapes.

    python bench/data_path.py          reads CIFAR-10 from DATA_DIR when it is there, else random images of that shape

Both do the same work: random crop of 32x32 from 40x40 and mirroring, per image, normalised float32 batches of 128.
torchvision's: CIFAR10 + RandomCrop, RandomHorizontalFlip, ToTensor, Normalize in a DataLoader with two workers.
Rounds alternate (A B A B ..), the table gives medians; worker start-up is not counted. Ours runs in one thread, which
suffices and is steady on a busy machine (two threads wait for each other there); theirs has two processes.
"""

import os
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from tabulate import tabulate
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import CIFAR10

from reprune.data.normalize import OWN
from reprune.data.small import cifar10
from reprune.data.split import split
from reprune.data.tensor import Images, TensorData

BATCH, ROUNDS = 128, 5
MEAN, STD = OWN["cifar10"]


def peer(root: Path, real: bool) -> DataLoader:
    """torchvision's loader over 50,000 images."""
    steps = [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)]
    if real:
        images = CIFAR10(root, transform=T.Compose(steps))
    else:  # its own class and __getitem__, without the files
        images = CIFAR10.__new__(CIFAR10)
        images.data, images.targets = torch.randint(256, (50_000, 32, 32, 3), dtype=torch.uint8).numpy(), [0] * 50_000
        images.transform, images.target_transform = T.Compose(steps), None
    return DataLoader(images, BATCH, shuffle=True, num_workers=2)


def ours(root: Path, real: bool):
    """Our loader over 50,000 images."""
    fixed = {"name": "cifar10", "channels": 3, "classes": 10, "size": 32}
    if real:
        data = cifar10(data_dir=root, normalize="own", val_size=0, split_seed=0, augment={"pad": 4, "flip": True},
                       limit=None, **fixed)
    else:
        pixels, labels = torch.randint(256, (50_000, 32, 32, 3), dtype=torch.uint8), torch.arange(50_000) % 10
        data = TensorData(Images(pixels, labels, pad=4), Images(pixels[:2], labels[:2]), flip=True, mean=MEAN, std=STD,
                          parts=split("cifar10", labels, 2, 0, 0, None), **fixed)
    return data.train(BATCH, seed=0)


def images_per_second(loader, batches: int) -> float:
    """Rate of `batches` batches, after a first one that starts the workers."""
    stream = iter(loader)
    next(stream)
    start, seen = perf_counter(), 0
    for x, _ in (next(stream) for _ in range(batches)):
        seen += len(x)
    return seen / (perf_counter() - start)


def main() -> list[dict]:
    root = Path(os.environ.get("DATA_DIR", "data"))
    real = (root / "cifar-10-batches-py").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    theirs, mine = peer(root, real), ours(root, real)
    rates: dict[str, list[float]] = {"torchvision, DataLoader, 2 workers": [], "reprune, uint8 tensors, 1 thread": []}
    for _ in range(ROUNDS):
        for loader, seen, batches in zip((theirs, mine), rates.values(), (60, len(mine) - 2), strict=True):
            seen.append(images_per_second(loader, batches))
    torch.set_num_threads(threads)
    base = median(next(iter(rates.values())))
    return [
        {"data path": name, "images/s": round(median(seen)), "lowest": round(min(seen)), "highest": round(max(seen)),
         "times torchvision": round(median(seen) / base, 1), "images": "CIFAR-10" if real else "random"}
        for name, seen in rates.items()
    ]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
