"""Images per second of trees of big images, decoded and cropped to 224 pixels: ours against torchvision's.

    python bench/photos.py          reads Imagewoof from DATA_DIR/imagewoof2-320 when it is there, else images made here

All do the same work, the torchvision recipe for ImageNet: decode, RandomResizedCrop, mirror, normalised float32 batches
of 64. torchvision's, ImageFolder in a DataLoader: on PIL images (ToTensor, Normalize); and by its tensor decoder, with
transforms v2. Rounds take turns (A B A B ..), the table gives medians, also of the ratios inside of rounds; worker
start-up is not counted, and every process has one thread. MiB: what the processes hold at most, all together, beyond
what there was before the first batch (shared pages count once).
"""

import os
import tempfile
from multiprocessing import active_children
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from common import at_least, at_most, ratio, spread, value
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from reprune.data import imagefolder
from reprune.data.normalize import IMAGENET

BATCH, ROUNDS, BATCHES, WORKERS = 64, 7, 4, (0, 2)                # batches of a round
OURS, PEER = "reprune, {} workers", "torchvision, tensors, {} workers"


def root(made: Path) -> tuple[Path, str]:
    """A tree with train/ and val/ -> where, what it is"""
    folder = Path(os.environ.get("DATA_DIR", "data")) / "imagewoof2-320"
    if folder.is_dir():
        return folder, "Imagewoof, 320 px"
    rng = np.random.default_rng(0)
    for number in range(10 * 80):
        place = made / ("train" if number < 700 else "val") / f"{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        smooth = Image.fromarray(rng.integers(256, size=(40, 53, 3), dtype=np.uint8)).resize((427, 320))
        smooth.save(place / f"{number}.jpg", quality=90)
    return made, "made here, 427x320 px"


def theirs(tree: Path) -> dict[str, ImageFolder]:
    on_pil = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*IMAGENET)])
    on_tensors = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(),
                             v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET)])
    return {"PIL": ImageFolder(tree / "train", on_pil),
            "tensors": ImageFolder(tree / "train", on_tensors, loader=lambda f: decode_image(f, ImageReadMode.RGB))}


def ours(tree: Path, workers: int):
    classes = len([place for place in (tree / "train").iterdir() if place.is_dir()])
    data = imagefolder(name="tree", channels=3, classes=classes, size=224, data_dir=str(tree), normalize="imagenet",
                       val_size=0, split_seed=0, limit=None, workers=workers)
    return data.train(BATCH, seed=0)


def held() -> float:
    """MiB of this process and of those that it has started; a page that n of them share counts as 1/n for each."""
    total = 0
    for pid in ("self", *(child.pid for child in active_children())):
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total / 1024


class Way:
    """A loader, and what it has been measured to do."""

    def __init__(self, make):
        self.make, self.rates, self.most = make, [], 0.0

    def measure(self) -> None:
        before, stream = held(), iter(self.make())
        next(stream)
        start, seen, looking = perf_counter(), 0, 0.0
        for x, _ in (next(stream) for _ in range(BATCHES)):
            look = perf_counter()
            seen, self.most = seen + len(x), max(self.most, held() - before)
            looking += perf_counter() - look
        self.rates.append(seen / (perf_counter() - start - looking))


def main() -> list[dict]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree, images = root(Path(folder))
        ways = {f"torchvision, {name}, {n} workers": Way(
            lambda source=source, n=n: DataLoader(source, BATCH, shuffle=True, num_workers=n))
            for n in WORKERS for name, source in theirs(tree).items()}
        ways |= {OURS.format(n): Way(lambda n=n: ours(tree, n)) for n in WORKERS}
        for _ in range(ROUNDS):
            for way in ways.values():
                way.measure()
    return [{"data path": name, "images/s": round(median(way.rates)), **spread(way.rates, 0),
             "times torchvision's on tensors": round(ratio(way.rates, ways[PEER.format(name.split()[-2])].rates), 2),
             "MiB": round(way.most), "images": images} for name, way in ways.items()]


def targets(rows: list[dict]) -> list[dict]:
    return [*(at_least(f"big images per second with {n} workers, times torchvision's on tensors",
                       value(rows, "times torchvision's on tensors", data_path=OURS.format(n)), 1) for n in WORKERS),
            at_most("memory of loading big images with 2 workers", value(rows, "MiB", data_path=OURS.format(2)), 512,
                    " MiB")]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
