"""What a sweep costs beside its runs: finished cells, the shared baseline, checkpoints.

    python bench/sweep.py          about two minutes on two cores

- `finished cell`: `-m method=l1 seed=range(40)` again, when all 40 records are there, start-up not counted: Hydra's
  basic sweeper, which launches every cell to find that out, and ours. (The records are one real record under 40 keys.)
- `five methods`: on ResNet-8 and 300 of the digits, one after the other in one process and thread: each with a baseline
  of its own, all with one, and what the records of the latter add up to: one baseline (ten epochs), five prunings
  (three epochs each, and three of sparse training for two of them), five measurements.
- `checkpoint`: seconds to save a stage of ResNet-20 as after every epoch, against an epoch of CIFAR-10 (391 batches of
  128), estimated from the median batch of the same run; medians.
"""

import contextlib
import io
import json
import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import pytorch_lightning as pl
import torch
from common import at_most, ratio, spread, turns, value
from data_path import cifar
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from tabulate import tabulate

from reprune import models
from reprune.pipeline import run
from reprune.runs.store import Store
from reprune.sweeps.cells import cell
from reprune.training.classifier import fit

ROOT = Path(__file__).resolve().parent.parent
CELLS, SWEEPS, BATCHES, SAVES = 40, 3, 25, 9
ALWAYS = ["model=resnet8", "logger=none", "trainer.enable_progress_bar=false", "hydra/job_logging=none",
          "hydra/hydra_logging=none"]


def sweep(*overrides: str) -> float:
    """Seconds of `python run.py -m OVERRIDES` after its start."""
    hydra = GlobalHydra.instance().hydra
    start = perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        hydra.multirun("config", lambda cfg: cell(cfg, run), [*ALWAYS, *overrides], with_log_configuration=False)
    return perf_counter() - start


def finished_cells(folder: Path) -> list[dict]:
    given = ["method=l1", f"output_dir={folder}"]
    sweep(*given, "seed=0", "dataset.limit=240")                  # also loads the code
    (file,) = folder.glob("*/record.json")
    record, net = json.loads(file.read_text()), file.with_name("net.safetensors").read_bytes()
    for seed in range(CELLS):
        store = Store(compose("config", [*ALWAYS, *given, f"seed={seed}"]))
        store.folder.mkdir(exist_ok=True)
        store.net_file.write_bytes(net)
        store.write({**record, "key": store.key, "seed": seed})
    ways = {"Hydra's basic sweeper": "basic", "reprune": "missing"}
    took = turns({way: partial(sweep, *given, f"seed=range({CELLS})", f"hydra/sweeper={name}")
                  for way, name in ways.items()}, SWEEPS, warm_up=0)
    base = next(iter(took.values()))
    return [{"what": "finished cell", "way": way, "seconds": round(median(seconds) / CELLS, 4),
             **spread([s / CELLS for s in seconds], 4), "compared": f"{ratio(base, seconds):.1f} times faster",
             "runs": CELLS * SWEEPS} for way, seconds in took.items()]


def five_methods(folder: Path) -> list[dict]:
    five = ["method=hgsr,l1,l1std,random,slimming", "dataset.limit=300", "recipe.baseline.epochs=10"]
    sweep(f"output_dir={folder}/code", *five, "dataset.limit=240", "recipe.baseline.epochs=1")      # loads the code
    rows, base = [], None
    for way, place in (("alone", "alone/${method.name}"), ("shared", "shared")):
        seconds = sweep(f"output_dir={folder}/{place}", *five)
        baselines = len(list((folder / way).rglob("baseline.json")))
        base = base or seconds
        rows.append((f"baselines trained: {baselines}", seconds))
    parts = [json.loads(file.read_text())["seconds"] for file in (folder / "shared").rglob("record.json")]
    rows.append(("one baseline + five prunings, by their records", sum(sum(part.values()) for part in parts)))
    return [{"what": f"{len(parts)} methods", "way": way, "seconds": round(seconds, 1),
             "compared": f"{base / seconds:.2f} times faster", "runs": 1} for way, seconds in rows]


class Clock(pl.Callback):
    """Seconds between the ends of batches, and of saving."""

    def __init__(self, file: Path):
        self.file, self.ends, self.saves = file, [], []

    def on_train_batch_end(self, *_) -> None:
        self.ends.append(perf_counter())

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for _ in range(SAVES):
            start = perf_counter()
            trainer.save_checkpoint(self.file)
            self.saves.append(perf_counter() - start)


def checkpoint(folder: Path) -> list[dict]:
    cfg = compose("config", ["model=resnet20", "recipe=cifar", "trainer.enable_progress_bar=false"])
    data, _ = cifar(limit=BATCHES * cfg.recipe.batch_size)
    clock = Clock(folder / "clock.ckpt")
    with contextlib.redirect_stdout(io.StringIO()):
        fit(models.resnet(20), data, cfg, "baseline", "baseline", epochs=1, callbacks=[clock],
            unfinished=folder / "unfinished.ckpt")
    batch = median(b - a for a, b in zip(clock.ends[2:], clock.ends[3:], strict=False))
    epoch, save = 50_000 / 128 * batch, median(clock.saves)
    return [{"what": "an epoch", "way": "ResNet-20, CIFAR-10", "seconds": round(epoch, 1), "compared": "estimated",
             "runs": len(clock.ends)},
            {"what": "checkpoint", "way": f"{clock.file.stat().st_size / 2**20:.1f} MiB", "seconds": round(save, 4),
             **spread(clock.saves, 4), "compared": f"{100 * save / epoch:.2f} % of an epoch", "runs": len(clock.saves)}]


def main() -> list[dict]:
    os.environ["REPRUNE_ROOT"] = str(ROOT)
    with tempfile.TemporaryDirectory() as name, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        folder, threads = Path(name), torch.get_num_threads()
        torch.set_num_threads(1)                                  # small nets: two threads would wait for each other
        rows = [*finished_cells(folder / "finished"), *five_methods(folder / "methods")]
        torch.set_num_threads(threads)
        return [*rows, *checkpoint(folder)]


def targets(rows: list[dict]) -> list[dict]:
    def ms(**where: str) -> float | None:
        seconds = value(rows, "seconds", **where)
        return None if seconds is None else 1000 * seconds

    return [at_most("a finished cell of a sweep", ms(what="finished cell", way="reprune"), 50, " ms"),
            at_most("a checkpoint", ms(what="checkpoint"), 50, " ms")]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
