"""How long a run of a campaign takes: its multiply-adds, over those per second seen on this device so far.

A training step counts three forward passes (a backward one takes two), and the unpruned net stands for all stages: an
upper bound for what is recovered. Nets of another size run at another speed, so the one seen nearest in MACs counts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from reprune import models
from reprune.sweeps.campaign import Job, Work
from reprune.sweeps.status import trained
from reprune.training.checkpoints import spent

STEP = 3            # forward passes that a training step costs


def here(device: str, threads: int) -> dict[str, Any]:
    """What runs must share to be as fast: the fields of a record's `env`."""
    if device == "cuda":
        return {"device": device, "device_name": torch.cuda.get_device_name()}
    return {"device": device, "threads": threads}


class Throughput:
    """seconds(job). start: seconds until a run has begun to train."""

    def __init__(self, here: dict[str, Any], jobs: Iterable[Job], start: float):
        self.here, self.start = here, start
        self.images = {as_text(job.work.dataset): job.work.images for job in jobs}
        self.rates: dict[int, float] = {}               # MACs of a net -> multiply-adds per second
        self.rest: dict[str, float] = {}                # row -> seconds of pruning and measuring

    def learn(self, record: dict) -> None:
        """From a run of this device, as far as it has trained: later ones replace earlier ones of the same net."""
        if any(record["env"].get(name) != value for name, value in self.here.items()):
            return
        self.rest[record["experiment"]] = sum(record["seconds"].get(part, 0) for part in ("prune", "measure"))
        macs, images = record["baseline"]["macs"], self.images.get(as_text(record["config"]["dataset"]), 0)
        work = sum(STEP * macs * images * record["epochs"][stage] for stage in ("sparse", "recover"))
        seconds = sum(record["seconds"].get(stage, 0) for stage in ("sparse", "recover"))
        if work and seconds > 0:                        # a baseline may have been found: its seconds say nothing
            self.rates[macs] = work / seconds

    def calibrate(self, works: Iterable[Work], limit: float) -> None:
        """Times training steps of the nets, the small ones first, as long as two steps fit into `limit` seconds."""
        end = time.monotonic() + limit
        for work in sorted(works, key=lambda w: w.macs):
            step = STEP * work.macs * work.batch
            if not self.rates or time.monotonic() + 2 * step / self.rate(work.macs) < end:
                self.rates[work.macs] = step / step_seconds(work)

    def rate(self, macs: int) -> float:
        return self.rates[min(self.rates, key=lambda seen: abs(math.log(seen / macs)))]

    def __call__(self, job: Job) -> float:
        """Seconds that are left of it."""
        work, rate = job.work, self.rate(job.work.macs)
        seconds = dict.fromkeys(work.epochs, 0.0) | {
            stage: STEP * work.macs * work.images * epochs / rate for stage, epochs in work.epochs.items()}
        if job.baseline is not None:
            seconds["baseline"] = 0.0 if trained(job.baseline) else max(
                seconds["baseline"] - gone(job.baseline / "unfinished.ckpt"), 0.0)
        later = seconds["sparse"] + seconds["recover"]
        if job.begun:
            later -= sum(gone(file) for file in (job.store.folder / "stages").glob("[!.]*"))
        rest = self.rest.get(job.row, work.macs * work.tested / rate)
        return self.start + seconds["baseline"] + max(later, 0.0) + rest


def gone(file: Path) -> float:
    """Seconds that went into what a file holds: the checkpoint of a stage, or the facts of a finished one."""
    try:
        return _gone(file, file.stat().st_mtime_ns)
    except OSError:                                     # replaced meanwhile
        return 0.0


@cache
def _gone(file: Path, _: int) -> float:
    if file.suffix == ".ckpt":
        return spent(file)
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["facts"]["seconds"])
    except (OSError, ValueError, KeyError, TypeError):  # a net; facts without a time
        return 0.0


def step_seconds(work: Work) -> float:
    """Of one training step, after a warm-up: the best of some, for about half a second."""
    net = models.build(work.model).to(work.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(work.batch, *work.example, device=work.device).contiguous(memory_format=torch.channels_last)
    y = torch.zeros(work.batch, dtype=torch.long, device=work.device)

    def step() -> float:
        begun = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        if work.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    step()
    started, times = time.perf_counter(), []
    while not times or time.perf_counter() - started < 0.5:
        times.append(step())
    return min(times)


def as_text(dataset: dict) -> str:
    return json.dumps({k: v for k, v in dataset.items() if k not in ("data_dir", "workers")}, sort_keys=True)
