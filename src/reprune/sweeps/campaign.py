"""What a campaign runs next, and how long that takes. Its processes: campaign_runs.py"""
from __future__ import annotations

import json
import math
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from reprune import models
from reprune.errors import UserError
from reprune.results.rows import read_rows
from reprune.runs.checks import check, hold
from reprune.runs.compose import composing
from reprune.runs.store import Store
from reprune.schema import Row
from reprune.structure.cost import cost, latency
from reprune.structure.groups import trace
from reprune.sweeps.cells import told
from reprune.sweeps.status import DONE, RUNNING, baseline, state, trained
from reprune.training.checkpoints import spent
from reprune.training.classifier import device

CONTROLS = ("random", "l1", "scratch")                  # of a row with a claim: control=NAME
QUIET = "trainer.enable_progress_bar=false"             # a bar in a log file is noise; no key depends on it
STEP = 3                # forward passes that a training step costs: a backward one takes two
TODO = "not begun"
WHY = (                 # the order, behind what is half done; of what is no "seed", one seed each
    "a claim",          # at the paper's whole recipe, if it fits into the time left
    "control of a claim", "seed of a claim or control", "another row", "seed of another row",
    "too long for now", "seed of one too long for now")           # it is begun, and goes on the next time


@dataclass(eq=False)
class Job:
    """One row with one seed, as it stands or as one of its controls."""

    row: str
    seed: int
    control: str | None = None
    claimed: bool = False                               # holds a paper's claim, and runs the paper's whole recipe
    controls: set[str] = field(default_factory=set)     # the rows it is a control of
    recorded: bool = False                              # there is a record of it, of whichever seed and recipe
    state: str = TODO                                   # or DONE, RUNNING, what a campaign says
    begun: bool = False                                 # an earlier attempt has left a checkpoint
    why: str = ""                                       # its place in the order
    overrides: list[str] = field(default_factory=list)
    store: Store | None = None
    baseline: Path | None = None                        # the folder of the net it prunes; None: weights are given
    macs: int = 0                                       # of the unpruned net, for one image
    images: int = 0                                     # in an epoch
    tested: int = 0                                     # forward passes of the measurements at the end
    epochs: dict[str, int] = field(default_factory=dict)          # per stage, those between rounds included
    log: Path | None = None
    process: subprocess.Popen | None = None             # that a campaign has started for it

    @property
    def case(self) -> tuple[str, str | None]:
        return self.row, self.control

    @property
    def name(self) -> str:
        return f"{self.row}{f' control={self.control}' if self.control else ''} seed {self.seed}"

    def refresh(self) -> None:
        """What the files say by now. A record counts wherever it lies: outputs/ stays behind, results/ travels. Jobs
        that share a baseline are half done until one of them has trained it."""
        record, why = self.store.look()
        if record and not why:
            self.store.serve(record, self.row)
        says = DONE if self.store.publication() else state(self.store)[0]
        self.state = says if says in (DONE, RUNNING) else TODO
        self.begun = any((self.store.folder / "stages").glob("[!.]*")) or (
            self.baseline is not None and (self.baseline / "unfinished.ckpt").is_file())


def order(jobs: Sequence[Job], left: float, seconds: Callable[[Job], float]) -> list[Job]:
    """Of all jobs, those to do: half done, then as in WHY; equals: without any record, then cheap. left: seconds."""
    need = {job: seconds(job) for job in jobs if job.state == TODO}
    wanted = {job.row for job in jobs if job.claimed and need.get(job, 0) <= left}
    first: dict[tuple, tuple[bool, int]] = {}           # the seed to begin with, if none is done or under way
    for job in jobs:
        first[job.case] = min(first.get(job.case, (True, job.seed)), (job in need, job.seed))

    def place(job: Job) -> int:                         # in WHY
        more = first[job.case] != (True, job.seed)
        if need[job] > left:
            return 5 + more
        if job.claimed or job.controls & wanted:
            return 2 if more else int(not job.claimed)
        return 3 + more

    for job in need:
        job.why = "half done: " * job.begun + WHY[place(job)]
    return sorted(need, key=lambda job: (not job.begun, place(job), job.recorded, need[job], job.row, job.name))


def find(root: Path, patterns: Sequence[str], seeds: Sequence[int], overrides: Sequence[str],
         controls: Sequence[str] = CONTROLS) -> tuple[list[Job], dict[str, list[str]]]:
    """-> jobs, one per key; {why: rows} of those that cannot run here. Raises UserError for a pattern without a row."""
    errors: list[str] = []
    rows, _ = read_rows(root, errors)
    if lost := [p for p in patterns if not any(fnmatchcase(row.id, p) for row in rows)]:
        raise UserError(f"rows {lost[0]!r} matches no row; the rows are: {', '.join(row.id for row in rows)}")
    cases = [(row, control) for row in sorted(rows, key=lambda row: not row.claim) for control in (None, *controls)
             if (row.claim or not control) and any(fnmatchcase(row.id, p) for p in patterns)]
    jobs, skipped = {}, defaultdict(list, {line: [] for line in errors})
    with composing(root) as compose:
        for row, control in cases:
            name = [f"experiments={row.id}", *([f"control={control}"] if control else [])]
            try:
                for seed in seeds:
                    what = [*name, QUIET, *overrides, f"seed={seed}"]
                    job = look(compose(what), row, Job(row.id, seed, control, overrides=what))
                    jobs.setdefault(job.store.key, job).controls.update([row.id] if control else [])
            except Exception as error:                  # whatever it is, a run of it would meet it too
                skipped[told(error)].append(" ".join([row.id, *name[1:]]))
    known = {(record["experiment"], record.get("control")) for record in records(jobs.values())}
    for job in jobs.values():
        job.recorded = job.case in known
    return list(jobs.values()), dict(skipped)


def look(cfg: DictConfig, row: Row, job: Job) -> Job:
    """The job, with what its config says. Raises UserError where the data is not there."""
    hold(config := OmegaConf.to_container(cfg, resolve=True), job.overrides)
    check(cfg)
    recipe, method = cfg.recipe, instantiate(cfg.method)
    model, dataset, paper = config["model"], config["dataset"], recipe.paper_epochs
    job.store, job.images, job.tested = Store(cfg), *images_of(json.dumps(dataset))
    job.baseline, job.log = baseline(job.store), job.store.root / "campaign" / f"{job.store.key}.log"
    job.epochs = {"baseline": recipe.baseline.epochs if job.baseline else 0,
                  "sparse": recipe.sparse.epochs if method.trains_sparse and recipe.sparse else 0,
                  "recover": recipe.recover.epochs if method.prunes and recipe.recover else 0}
    job.claimed = bool(row.claim and paper and not job.control and dataset["limit"] is None) and all(
        epochs == paper[stage] for stage, epochs in job.epochs.items() if stage != "baseline" or job.baseline)
    job.macs, between = net_of(json.dumps({**model, "weights": None}), dataset["channels"], dataset["size"],
                               json.dumps(config["method"].get("rounds")))
    job.epochs["recover"] += between
    job.refresh()
    return job


@cache
def images_of(dataset: str) -> tuple[int, int]:
    """-> images in an epoch, forward passes of the measurements: the baseline, before and after recovery"""
    with mock.patch("socket.getaddrinfo", side_effect=OSError("a campaign downloads nothing")), redirect_stdout(None):
        parts = instantiate({**json.loads(dataset), "normalize": "imagenet"}).parts       # own: would read all images
    return len(parts.train), 3 * len(parts.test) + len(parts.val)


@cache
def net_of(model: str, channels: int, size: int, rounds: str) -> tuple[int, int]:
    """-> MACs for one image; epochs between rounds, if every group loses a filter: at most so many"""
    net, x, rounds = models.build(json.loads(model)), torch.zeros(1, channels, size, size), json.loads(rounds)
    turns = instantiate(rounds)(lambda: {g.name: torch.arange(g.size) > 0 for g in trace(net, x)}) if rounds else ()
    return cost(net, x).macs, sum(turn.epochs or 0 for turn in turns)


def records(jobs: Iterable[Job]) -> list[dict]:
    """All that can be read, of all rows, old ones first."""
    found = []
    for published, outputs in {(job.store.published.parent, job.store.root) for job in jobs}:
        for file in [*published.glob("*.json"), *outputs.glob("*/record.json")]:
            with suppress(OSError, ValueError, KeyError, TypeError):          # tables tell of damaged ones
                record = json.loads(file.read_text(encoding="utf-8"))
                found.append((record["started"], record["key"], record["experiment"], record))
    return [record for *_, record in sorted(found, key=lambda f: f[:2])]


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
        self.rates: dict[int, float] = {}               # MACs of a net -> multiply-adds per second
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
            self.rates[macs] = work / seconds

    def calibrate(self, jobs: Iterable[Job], limit: float) -> None:
        """Times forward passes of the nets, the small ones first, as long as those of one fit into `limit` seconds."""
        for job in sorted({job.macs: job for job in jobs}.values(), key=lambda job: job.macs):
            config, batch = job.store.config, job.store.config["recipe"]["batch_size"]
            if self.rates and 5 * job.macs * batch / self.rate(job.macs) > limit:
                break
            net = models.build({**config["model"], "weights": None})
            x = torch.zeros(batch, *(config["dataset"][of] for of in ("channels", "size", "size")))
            net, x = (part.to(self.here["device"], memory_format=torch.channels_last) for part in (net, x))
            self.rates[job.macs] = job.macs * batch / (latency([net], x, seconds=0.5)[0].ms / 1000)

    def rate(self, macs: int) -> float:
        return self.rates[min(self.rates, key=lambda seen: abs(math.log(seen / macs)))]

    def __call__(self, job: Job) -> float:
        """Seconds that are left of it."""
        rate, stages = self.rate(job.macs), job.store.folder / "stages"
        need = {stage: STEP * job.macs * job.images * epochs / rate for stage, epochs in job.epochs.items()}
        if job.baseline is not None:
            need["baseline"] = 0 if trained(job.baseline) else need["baseline"] - gone(job.baseline, "*.ckpt")
        later = need["sparse"] + need["recover"] - gone(stages, "*.ckpt") - gone(stages, "*.json")
        rest = self.rest.get(job.case, job.macs * job.tested / rate)
        return self.start + max(need["baseline"], 0) + max(later, 0) + rest


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
