"""The table of docs/imagenet-net.md: EfficientNet-Lite0 pruned, repaired and fine-tuned on real images of ten breeds.

    python bench/imagenet/run.py FOLDER [--only '0.8 l1*']        FOLDER holds imagewoof2-320; about 2 hours of one core

Net, images, accuracy and training are those of the page: its blocks of code are run. Filters are chosen and nets are
repaired and trained by training images; accuracy is of the ONNX file on all validation images, in float32. What has
been found is kept in results/bench/imagenet.json as soon as it is known; a line that is there is not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from runpy import run_path
from statistics import median
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(Path(__file__).parent)]
import page  # noqa: E402
import torch  # noqa: E402
from common import ratio, turns  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import reprune  # noqa: E402
from reprune.files import write_text  # noqa: E402
from reprune.methods.taylor2019 import TaylorFO  # noqa: E402
from reprune.models.export import onnx_bytes, session  # noqa: E402

conditions = run_path(str(ROOT / "bench" / "run.py"))["conditions"]
ROUNDS = 40
SPEED = {"whole": None} | {f"{macs:.0%} of the MACs, multiple={multiple}": (macs, multiple)
                           for macs in page.BUDGETS for multiple in (1, 8, 16)}


def lines() -> Iterator[str]:
    """What can be measured, what says most first."""
    yield from ("whole", "0.65 l1 refit", "speed", "0.65 random refit", "0.65 l1 refit, epoch", "whole, epoch",
                "0.65 random refit, epoch", "0.65 l1 bn, epoch")
    yield from (f"{macs} {criterion} {repair}" for repair in ("refit", "bn", "cut", "refit+bn")
                for macs in reversed(page.BUDGETS) for criterion in page.CRITERIA)


class Bench:
    """The page's names, and its images in memory."""

    def __init__(self, folder: Path):
        os.chdir(folder)
        self.names: dict = {}
        for block in page.code():
            if "def " in block:                                   # what it does with them is done here, line by line
                exec(block.partition("\n\nfit(")[0], self.names)
        self.net, self.example = self.names["net"], torch.zeros(1, 3, 224, 224)
        self.some = list(self.names["some"])
        self.unseen = sum(Path(file).name.startswith("ILSVRC2012_val") for file, _ in self.names["val"].dataset.samples)
        self.val = [(((x + 1) * 127.5).round().byte(), y) for x, y in self.names["val"]]

    def measure(self, line: str) -> dict:
        return self.speed() if line == "speed" else self.accuracy(line)

    def accuracy(self, line: str) -> dict:
        start = process_time()
        cut, _, trained = line.partition(", ")
        torch.manual_seed(0)
        net = self.names["ten_breeds"]() if cut == "whole" else self.pruned(*cut.split())
        net = self.names["fit"](net) if trained else net
        cost, model = reprune.cost(net, self.example), exported(net)
        top1 = self.names["top1"](session(model), ((x / 127.5 - 1, y) for x, y in self.val))
        return {"top1": round(top1, 2), "images": sum(len(y) for _, y in self.val), "unseen": self.unseen,
                "params": cost.params, "macs": cost.macs, "file_mib": round(len(model) / 2**20, 2),
                "cpu_seconds": round(process_time() - start)}

    def pruned(self, macs: str, criterion: str, repair: str) -> nn.Module:
        chosen = TaylorFO(batches=32, batch_size=32) if criterion == "taylor2019" else criterion
        repairs = {"recalibrate": self.some} if "bn" in repair else {}
        repairs |= {"refit": self.some} if "refit" in repair else {}
        return reprune.prune(self.net, self.example, macs=float(macs), multiple=16, criterion=chosen, data=self.some,
                             **repairs)

    def speed(self) -> dict:
        nets = {name: reprune.prune(self.net, self.example, macs=how[0], multiple=how[1]) if how else self.net
                for name, how in SPEED.items()}
        taken = turns({name: timed(session(exported(net)), self.example) for name, net in nets.items()}, ROUNDS, 3)
        return {"rounds": ROUNDS, "nets": {
            name: {"macs": reprune.cost(net, self.example).macs, "lowest": round(1000 * min(taken[name]), 2),
                   "median": round(1000 * median(taken[name]), 2),
                   "times_faster": round(ratio(taken["whole"], taken[name]), 2)} for name, net in nets.items()}}


def exported(net: nn.Module) -> bytes:
    return onnx_bytes(copy.deepcopy(net).to(memory_format=torch.contiguous_format), torch.zeros(2, 3, 224, 224))


def timed(run: Callable[[Tensor], Tensor], image: Tensor) -> Callable[[], Tensor]:
    return lambda: run(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds imagewoof2-320/train and imagewoof2-320/val")
    parser.add_argument("--only", default="*", help="pattern of lines, as '0.8 l1*'")
    given = parser.parse_args()
    with_what, bench = conditions(), Bench(given.folder.resolve())
    for line in lines():
        if line not in page.known() and fnmatch(line, given.only):
            answer = bench.measure(line) | with_what
            found = page.known() | {line: answer}                 # another process may have been at it meanwhile
            print(line, json.dumps(found[line]), flush=True)
            write_text(page.FOUND, json.dumps(found, indent=1) + "\n")
            write_text(page.PAGE, page.page(page.PAGE.read_text(encoding="utf-8"), found))


if __name__ == "__main__":
    main()
