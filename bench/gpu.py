"""A CIFAR-10 epoch on a GPU: what each step of the GPU path gains, how far it is from the chip's limit.

    python bench/gpu.py          on one GPU; CIFAR-10 from DATA_DIR if it is there, else random images

Every line is `reprune.training.fit` as a run calls it, batches of 128, on images that lie on the GPU. `epoch, s` is
the median of the epochs after the first, `first, s` the first one with all that is done once (kernels chosen, steps
recorded or compiled). `launched`: kernel by kernel; `replayed`: steps are CUDA graphs (`speed.graph`); `compiled`: by
torch.compile as well (`speed.compile`). The ways take turns, the ratio is that of the medians.
`arithmetic, s` and `memory, s` are what the chip's measured rates allow for an epoch: its multiply-adds (forward once,
backward twice) at the rate of a large bfloat16 matrix product, and the values that layers read and write (as often) at
the rate of a large copy.
`200 epochs, min`: start-up, first epoch and 199 others. `side by side`: images per second of so many processes at once.
`top-1` compares float32 with bfloat16: mean and standard deviation over seeds on held-out images after some epochs.
"""

import argparse
import contextlib
import copy
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median, stdev
from time import perf_counter

import pytorch_lightning as pl
import torch
from common import at_most, value
from data_path import cifar
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn

from reprune import models
from reprune.data import Data
from reprune.structure.cost import cost
from reprune.training.classifier import fit

ROOT = Path(__file__).resolve().parent.parent
WAYS = {"float32, launched": ["speed.graph=false"],
        "bfloat16, launched": ["trainer=gpu", "speed.graph=false"],
        "bfloat16, replayed": ["trainer=gpu"],
        "bfloat16, replayed and compiled": ["trainer=gpu", "speed.compile=true"]}
BEST = "bfloat16, replayed"                                       # what trainer=gpu does
NETS = {"resnet56": lambda: models.resnet(56), "vgg16": lambda: models.vgg(16), "resnet8": lambda: models.resnet(8)}
Configure = Callable[..., DictConfig]                             # overrides -> config
ROUNDS, EPOCHS, EPOCH = 2, 4, 200                                 # per way; epochs of the usual recipe


def missing() -> str | None:
    return None if torch.cuda.is_available() else "this machine has no GPU"


class Clock(pl.Callback):
    """Seconds of every epoch, with what is still under way on the GPU at its end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_) -> None:
        self.began = perf_counter()

    def on_train_epoch_end(self, *_) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(perf_counter() - self.began)


@contextlib.contextmanager
def configs(device: str) -> Iterator[Configure]:
    os.environ["REPRUNE_ROOT"] = str(ROOT)
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *overrides: compose("config", [
            "dataset=cifar10", "method=baseline", "recipe=cifar", f"output_dir={folder}", "logger=none",
            f"trainer.accelerator={device}", "trainer.enable_progress_bar=false", *overrides])


def train(net: nn.Module, data: Data, cfg: DictConfig, epochs: int) -> tuple[list[float], dict[str, list[float]]]:
    """-> seconds of every epoch, the curve"""
    clock = Clock()
    with contextlib.redirect_stdout(io.StringIO()):
        facts = fit(net, data, cfg, "baseline", "baseline", epochs=epochs, callbacks=[clock],
                    unfinished=Path(cfg.output_dir) / "unfinished.ckpt")
    (Path(cfg.output_dir) / "unfinished.ckpt").unlink()
    return clock.seconds, facts["curve"]


def ladder(name: str, data: Data, configure: Configure, device: str, rounds: int = ROUNDS, epochs: int = EPOCHS,
           ways: dict[str, list[str]] = WAYS) -> list[dict]:
    """One line for each of the ways."""
    start = NETS[name]().to(device, memory_format=torch.channels_last)
    first, others = {way: [] for way in ways}, {way: [] for way in ways}
    for _ in range(rounds):
        for way, overrides in ways.items():
            seconds, _ = train(copy.deepcopy(start), data, configure(*overrides), epochs)
            first[way].append(seconds[0])
            others[way] += seconds[1:]
    images, slowest = len(data.parts.train), median(others[next(iter(ways))])
    return [{"what": way, "model": name, "epoch, s": median(others[way]), "first, s": max(first[way]),
             "images/s": round(images / median(others[way])), "times faster": slowest / median(others[way])}
            for way in ways]


def limit(name: str, device: str, images: int, size: int = 8192) -> dict:
    """What the rates of this chip allow."""
    net = NETS[name]().to(device, memory_format=torch.channels_last)
    example = torch.zeros(1, 3, 32, 32, device=device)
    values = 0

    def count(_: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal values
        values += inputs[0].numel() + output.numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if not list(m.children())]
    with torch.no_grad():
        net.eval()(example)
    for hook in hooks:
        hook.remove()
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    product = 2 * size ** 3 / fastest(lambda: a @ a, device)                             # operations per second
    block = torch.empty(size * size * 8, device=device, dtype=torch.bfloat16)
    copied = 2 * block.nbytes / fastest(lambda: block.clone(), device)                   # bytes per second
    return {"what": "limit", "model": name, "arithmetic, s": 3 * 2 * cost(net, example).macs * images / product,
            "memory, s": 3 * 2 * values * images / copied, "Tflop/s": product / 1e12, "GB/s": copied / 1e9}


def fastest(work: Callable[[], object], device: str, times: int = 10) -> float:
    """Seconds."""
    taken = []
    for _ in range(times):
        if device == "cuda":
            torch.cuda.synchronize()
        start = perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(perf_counter() - start)
    return min(taken)


def seeds(name: str, data: Data, configure: Configure, device: str, n: int = 3, epochs: int = 10) -> list[dict]:
    """Is bfloat16 as accurate as float32, seen from how far seeds lie apart?"""
    rows = []
    for way in (next(iter(WAYS)), BEST):
        found = []
        for seed in range(n):
            torch.manual_seed(seed)
            net = NETS[name]().to(device, memory_format=torch.channels_last)
            cfg = configure(f"seed={seed}", f"recipe.baseline.scheduler.milestones=[{epochs - 2}]", *WAYS[way])
            found.append(train(net, data, cfg, epochs)[1]["val_top1"][-1])
        rows.append({"what": f"{way}: {n} seeds, {epochs} epochs", "model": name, "top-1": mean(found),
                     "± top-1": stdev(found)})
    return rows


def side_by_side(name: str, counts: tuple[int, ...], epochs: int) -> list[dict]:
    """Throughput of processes that share the GPU; each is this file with --alone."""
    rows = []
    for n in counts:
        running = [subprocess.Popen([sys.executable, __file__, "--alone", name, str(epochs)], text=True,
                                    stdout=subprocess.PIPE) for _ in range(n)]
        speeds = [float(process.communicate()[0].split()[-1]) for process in running]
        rows.append({"what": f"{n} side by side", "model": name, "images/s": round(sum(speeds))})
    return [{**row, "times faster": row["images/s"] / rows[0]["images/s"]} for row in rows]


def alone(name: str, epochs: int, device: str = "cuda") -> float:
    """-> images per second after the first epoch"""
    data, _ = cifar()
    with configs(device) as configure:
        net = NETS[name]().to(device, memory_format=torch.channels_last)
        return len(data.parts.train) / median(train(net, data, configure(*WAYS[BEST]), epochs)[0][1:])


def start_up(name: str) -> float:
    """Seconds of a whole command that trains for one epoch, less that epoch and the measuring at its end."""
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        subprocess.run([sys.executable, "run.py", f"model={name}", "dataset=cifar10", "method=baseline", "recipe=cifar",
                        "trainer=gpu", "recipe.baseline.epochs=1", f"output_dir={folder}", "logger=none",
                        "trainer.enable_progress_bar=false"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return perf_counter() - start


def main() -> list[dict]:
    data, images = cifar()
    rows = []
    with configs("cuda") as configure:
        for name in ("resnet56", "vgg16"):
            rows += ladder(name, data, configure, "cuda")
            rows.append(limit(name, "cuda", len(data.parts.train)))
            if images != "random":
                epoch = value(rows, "epoch, s", what=BEST, model=name)
                rows.append({"what": "200 epochs", "model": name,
                             "200 epochs, min": (start_up(name) + (EPOCH - 1) * epoch) / 60})
        if images != "random":
            rows += seeds("resnet8", instantiate(configure().dataset), configure, "cuda")
    return [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
            for row in rows + side_by_side("resnet56", (1, 2, 4), EPOCHS)]


def targets(rows: list[dict]) -> list[dict]:
    """A table of ten rows with three seeds: 200 epochs of a baseline for each seed, 40 of recovery for each run."""
    nets = ("resnet56", "vgg16")
    epochs = {name: value(rows, "epoch, s", what=BEST, model=name) for name in nets}
    whole = {name: value(rows, "200 epochs, min", what="200 epochs", model=name) for name in nets}
    table = None if epochs["resnet56"] is None else epochs["resnet56"] * (3 * EPOCH + 30 * 40) / 3600
    return [at_most("ResNet-56, an epoch of CIFAR-10", epochs["resnet56"], 1, " s"),
            *(at_most(f"{name}, 200 epochs and start-up", whole[name], 4, " min") for name in nets),
            at_most("ResNet-56, 10 rows with 3 seeds (200 epochs a seed, 40 a run)", table, 2, " h")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--alone", nargs=2, metavar=("NET", "EPOCHS"))
    given = parser.parse_args()
    if given.alone:
        print(alone(given.alone[0], int(given.alone[1])))
    else:
        print(f"not measured: {missing()}" if missing() else tabulate(main(), headers="keys", tablefmt="github"))
