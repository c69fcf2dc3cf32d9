"""What a campaign runs next. How long that takes: throughput.py; its processes: campaign_runs.py"""
from __future__ import annotations

import json
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
from reprune.runs.checks import check
from reprune.runs.compose import composing
from reprune.runs.content import one_look
from reprune.runs.store import Store
from reprune.runs.targets import hold
from reprune.schema import Row
from reprune.structure.cost import cost
from reprune.structure.groups import trace
from reprune.sweeps.cells import told
from reprune.sweeps.status import DONE, RUNNING, baseline, state, trained
from reprune.training.speed import native_bf16

CONTROLS = ("random", "l1", "scratch")                  # of a row with a claim: control=NAME
QUIET = "trainer.enable_progress_bar=false"             # a bar in a log file is noise; no key depends on it
BF16 = "trainer=cpu_bf16"
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

    @property
    def untouched(self) -> bool:
        return self.state == TODO and not self.begun and not (self.baseline and trained(self.store))

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
    """-> jobs, one per key; {why: rows} of those that cannot run here. Raises UserError for a pattern without a row.

    Where nobody chooses a trainer and this is a CPU with bfloat16, jobs are in bfloat16, but not the seeds of what has
    begun in float32."""
    errors: list[str] = []
    rows, _ = read_rows(root, errors)
    if lost := [p for p in patterns if not any(fnmatchcase(row.id, p) for row in rows)]:
        raise UserError(f"rows {lost[0]!r} matches no row; the rows are: {', '.join(row.id for row in rows)}")
    cases = [(row, control) for row in sorted(rows, key=lambda row: not row.claim) for control in (None, *controls)
             if (row.claim or not control) and any(fnmatchcase(row.id, p) for p in patterns)]
    faster = not (any(o.lstrip("+~").startswith("trainer") for o in overrides)
                  or torch.cuda.is_available()) and native_bf16()
    jobs, skipped = {}, defaultdict(list, {line: [] for line in errors})
    with one_look(), composing(root) as compose:
        for row, control in cases:
            name = [f"experiments={row.id}", *([f"control={control}"] if control else [])]

            def found(*more: str, name=name, row=row, control=control) -> list[Job]:
                whats = [[*name, QUIET, *more, *overrides, f"seed={seed}"] for seed in seeds]
                return [look(compose(what), row, Job(row.id, seed, control, overrides=what))
                        for seed, what in zip(seeds, whats, strict=True)]

            try:
                these = found()
                if faster and all(job.untouched for job in these):
                    these = found(BF16)
                for job in these:
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
