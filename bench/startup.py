"""How long a run takes to start, beside the bare imports of the libraries it uses.

    python bench/startup.py          about a minute and a half

Whole processes, from their start to their end; `first step` is `python run.py` on the digits until the first batch has
been trained on, `finished run` the same command again when its record is there. They take turns (A B A B ..), after a
first round that fills the disk's cache; ratios are taken inside each round; medians, lowest and highest of the rounds.
"""

import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import torch
from common import process, ratio, spread
from tabulate import tabulate

ROOT, HERE = Path(__file__).resolve().parent.parent, Path(__file__).resolve().parent
ROUNDS = 4
LIBRARIES = "torch, torchvision, pytorch_lightning, hydra"
FINISHED = ["model=resnet8", "dataset.limit=100", "method=baseline", "recipe.baseline.epochs=1", "logger=none"]


class FirstStep(torch.optim.SGD):
    """An optimiser whose first step is the end of the process."""

    def step(self, *args, **kwargs) -> None:
        super().step(*args, **kwargs)
        os._exit(0)


def main() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        place = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(HERE)}}
        run = partial(process, str(ROOT / "run.py"), **place)
        finished = [*FINISHED, f"output_dir={folder}/finished"]
        first = "recipe.baseline.optimizer._target_=startup.FirstStep"
        ways = {
            "import torch": partial(process, "-c", "import torch", **place),
            f"import {LIBRARIES}": partial(process, "-c", f"import {LIBRARIES}", **place),
            "import reprune.pipeline": partial(process, "-c", "import reprune.pipeline", **place),
            "python run.py --help": partial(run, "--help"),
            "python run.py, to its first step": partial(run, first, f"output_dir={folder}/first"),
            "python run.py, a finished run": partial(run, *finished),
        }
        run(*finished)                                            # so that it is finished
        took = {name: [] for name in ways}
        for number in range(ROUNDS + 1):
            for name, way in ways.items():
                one = way()
                if number:
                    took[name].append(one)
    seconds = {name: [s for s, _, _ in taken] for name, taken in took.items()}
    bare = seconds[f"import {LIBRARIES}"]
    return [{"what": name, "seconds": round(median(seconds[name]), 2), **spread(seconds[name], 2),
             "times bare imports": round(ratio(seconds[name], bare), 2),
             "CPU, s": round(median(cpu for _, cpu, _ in taken), 2),
             "peak MiB": round(median(peak for *_, peak in taken))} for name, taken in took.items()]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
