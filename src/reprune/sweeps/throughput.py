"""How long the runs of a campaign take on this device."""
from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from omegaconf import OmegaConf

from reprune import models
from reprune.structure.cost import latency
from reprune.sweeps.campaign import TODO, Job, records
from reprune.sweeps.status import trained
from reprune.training.checkpoints import spent
from reprune.training.classifier import device

STEP = 3                # forward passes that a training step costs: a backward one takes two


class Throughput:
    """seconds(job): its multiply-adds, over those per second seen on this device so far.

    The unpruned net stands for all stages: an upper bound for what is recovered. Nets of another size run at another
    speed, so the one seen nearest in MACs counts. start: seconds until a run has begun to train."""

    def __init__(self, jobs: Sequence[Job], threads: int, start: float, limit: float = math.inf):
        on = device(OmegaConf.create(jobs[0].store.config))       # and what else runs share that are as fast:
        self.here = {"device": on, **({"threads": threads} if on == "cpu" else
                                      {"device_name": torch.cuda.get_device_name()})}
        self.start = start
        self.images = {json.dumps(job.store.config["dataset"], sort_keys=True): job.images for job in jobs}
        self.rates: dict[tuple[str, int], float] = {}   # precision, MACs of a net -> multiply-adds per second
        self.rest: dict[tuple, float] = {}              # row, control -> seconds of pruning and measuring
        for record in records(jobs):
            self.learn(record)
        if not self.rates:
            torch.set_num_threads(threads)
            self.calibrate((job for job in jobs if job.state == TODO), limit)

    def learn(self, record: dict) -> None:
        """From a run of this device, as far as it has trained: later ones replace earlier ones of the same net."""
        if any(record["env"].get(name) != value for name, value in self.here.items()):
            return
        took, macs = defaultdict(float, record["seconds"]), record["baseline"]["macs"]
        self.rest[record["experiment"], record.get("control")] = took["prune"] + took["measure"]
        epochs, seconds = (of["sparse"] + of["recover"] for of in (record["epochs"], took))
        work = STEP * macs * self.images.get(json.dumps(record["config"]["dataset"], sort_keys=True), 0) * epochs
        if work and seconds > 0:                        # a baseline may have been found: its seconds say nothing
            self.rates[record["config"]["trainer"]["precision"], macs] = work / seconds

    def calibrate(self, jobs: Iterable[Job], limit: float) -> None:
        """Times forward passes of the nets, the small ones first, as long as those of one fit into `limit` seconds."""
        for (precision, macs), job in sorted({(precision_of(job), job.macs): job for job in jobs}.items(),
                                             key=lambda seen: seen[0][1]):
            config, batch = job.store.config, job.store.config["recipe"]["batch_size"]
            if self.rates and 5 * macs * batch / self.rate(job) > limit:
                break
            net = models.build({**config["model"], "weights": None})
            x = torch.zeros(batch, *(config["dataset"][of] for of in ("channels", "size", "size")))
            net, x = (part.to(self.here["device"], memory_format=torch.channels_last) for part in (net, x))
            with torch.autocast(self.here["device"], torch.bfloat16, enabled=precision.startswith("bf16")):
                self.rates[precision, macs] = macs * batch / (latency([net], x, seconds=0.5)[0].ms / 1000)

    def rate(self, job: Job) -> float:
        return self.rates[min(self.rates, key=lambda seen: (seen[0] != precision_of(job),
                                                            abs(math.log(seen[1] / job.macs))))]

    def __call__(self, job: Job) -> float:
        """Seconds that are left of it."""
        rate, stages = self.rate(job), job.store.folder / "stages"
        need = {stage: STEP * job.macs * job.images * epochs / rate for stage, epochs in job.epochs.items()}
        if job.baseline is not None:
            need["baseline"] = 0 if trained(job.store) else need["baseline"] - gone(job.baseline, "*.ckpt")
        later = need["sparse"] + need["recover"] - gone(stages, "*.ckpt") - gone(stages, "*.json")
        rest = self.rest.get(job.case, job.macs * job.tested / rate)
        return self.start + max(need["baseline"], 0) + max(later, 0) + rest


def precision_of(job: Job) -> str:
    return job.store.config["trainer"]["precision"]


def gone(folder: Path, files: str) -> float:
    """Seconds that went into what files hold: checkpoints of a stage, facts of finished ones."""
    with suppress(OSError):                             # a run replaces them meanwhile
        return sum(gone_into(file, file.stat().st_mtime_ns) for file in folder.glob(files))
    return 0.0


@cache
def gone_into(file: Path, _: int) -> float:
    with suppress(ValueError, KeyError, TypeError):     # facts without a time
        return spent(file) if file.suffix == ".ckpt" else json.loads(file.read_text())["facts"]["facts"]["seconds"]
    return 0.0
