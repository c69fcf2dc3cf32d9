"""Which runs a campaign may start, what they cost, and in which order they are worth it (experiments/campaign.py).

`order`, of all that is not done yet:

    what is half done
    claims at the paper's whole recipe, one seed each, if they fit into the time left
    the controls of these rows, one seed each
    the missing seeds of both
    whatever else fits, one seed each; then its missing seeds
    what does not fit, one seed each, then its missing seeds: it is begun, and goes on the next time

Among equals, rows without any record come before rows with one, and cheap runs before dear ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from reprune import models
from reprune.errors import UserError, user_error
from reprune.pruning.sockets import Method
from reprune.results.compose_rows import found_in
from reprune.results.controls import controls_of
from reprune.results.rows import departures, flat, read_rows
from reprune.runs.compose import Composer, outside_of_jobs
from reprune.runs.store import Store, baseline_key
from reprune.schema import GROUPS, STAGES, Row
from reprune.structure.cost import cost
from reprune.structure.groups import trace
from reprune.sweeps.status import running
from reprune.training.classifier import device

QUIET = "trainer.enable_progress_bar=false"             # a bar in a log file is noise; no key depends on it
TODO, DONE, ELSEWHERE = "to do", "done", "running elsewhere"
WHY = ("a claim", "control of a claim", "seed of a claim or control", "another row", "seed of another row",
       "too long for now", "seed of one too long for now")


@dataclass
class Work:
    """What a row asks of a device."""

    model: dict                                         # resolved conf/model node, without weights
    example: tuple[int, int, int]                       # [C, H, W]
    batch: int
    macs: int                                           # of the unpruned net, for one image
    images: int                                         # in an epoch
    tested: int                                         # forward passes of the measurements at the end
    epochs: dict[str, int]                              # stage -> epochs, those between rounds included
    dataset: dict                                       # as a record's config has it
    device: str                                         # cuda or cpu


@dataclass
class Job:
    """One row with one seed."""

    row: str
    seed: int
    claimed: bool = False                               # holds a paper's claim, and runs the paper's whole recipe
    controls: frozenset[str] = frozenset()              # the rows it is a control of
    recorded: bool = False                              # the row has a record, of whichever seed and recipe
    state: str = TODO
    begun: bool = False                                 # an earlier attempt has left a checkpoint
    why: str = ""                                       # its place in the order
    overrides: list[str] = field(default_factory=list)
    work: Work | None = None
    store: Store | None = None
    baseline: Path | None = None                        # the folder of the net it prunes; None: weights are given

    @property
    def name(self) -> str:
        return f"{self.row} seed {self.seed}"

    def refresh(self) -> None:
        """What the files say by now. A record counts wherever it lies: outputs/ stays behind, results/ travels."""
        record = self.store.finished()
        if record is not None:
            self.store.serve(record, self.row)
        if record is not None or self.store.is_published():
            self.state = DONE
        else:
            self.state = ELSEWHERE if running(self.store.folder / "lock") else TODO
        self.look()

    def look(self) -> None:
        """Is it half done? Jobs that share a baseline are, until one of them has trained it."""
        self.begun = any((self.store.folder / "stages").glob("[!.]*")) or (
            self.baseline is not None and (self.baseline / "unfinished.ckpt").is_file())


def order(jobs: Sequence[Job], left: float, seconds: Callable[[Job], float]) -> list[Job]:
    """The jobs to do, the most valuable first. jobs: all; left: seconds that remain."""
    todo = {id(job): seconds(job) for job in jobs if job.state == TODO}
    under_way = {job.row for job in jobs if job.state != TODO}
    first: dict[str, int] = {}                          # row -> the seed to begin with
    for job in jobs:
        if job.state == TODO and job.row not in under_way:
            first[job.row] = min(job.seed, first.get(job.row, job.seed))
    wanted = {job.row for job in jobs if job.claimed and (job.state != TODO or todo[id(job)] <= left)}

    def place(job: Job) -> int:                         # in WHY
        more = first.get(job.row) != job.seed
        if todo[id(job)] > left:
            return 6 if more else 5
        if job.claimed or job.controls & wanted:
            return 2 if more else 0 if job.claimed else 1
        return 4 if more else 3

    some = [job for job in jobs if job.state == TODO]
    for job in some:
        job.why = ("half done: " if job.begun else "") + WHY[place(job)]
    return sorted(some, key=lambda job: (not job.begun, place(job), job.recorded, todo[id(job)], job.row, job.seed))


def find(root: Path, patterns: Sequence[str], seeds: Sequence[int],
         overrides: Sequence[str]) -> tuple[list[Job], dict[str, list[str]]]:
    """-> jobs; {why: rows} of those that cannot run here. Raises UserError for a pattern that names no row."""
    errors: list[str] = []
    rows, _ = read_rows(root, errors)
    if lost := [p for p in patterns if not any(fnmatchcase(row.id, p) for row in rows)]:
        raise UserError(f"rows {lost[0]!r} matches no row; the rows are: {', '.join(row.id for row in rows)}")
    jobs, skipped, look = [], defaultdict(list), Look()
    for line in errors:
        skipped[line] = []
    controls = defaultdict(set)                         # row -> the rows it is a control of
    for row in rows:
        for other in (o for some in controls_of(row, rows).values() for o in some if row.claim and o is not row):
            controls[other.id].add(row.id)
    with found_in(root), initialize_config_dir(str((root / "conf").resolve()), version_base="1.3"), outside_of_jobs():
        compose = Composer(GlobalHydra.instance().config_loader())
        for row in rows:
            if not any(fnmatchcase(row.id, p) for p in patterns):
                continue
            try:
                for seed in seeds:
                    what = [f"experiments={row.id}", QUIET, *overrides, f"seed={seed}"]
                    cfg = compose(what)
                    store = Store(cfg)
                    work = look(cfg)
                    job = Job(row.id, seed, whole(row, cfg, work), frozenset(controls[row.id]), overrides=what,
                              work=work, store=store)
                    if not cfg.model.weights:
                        job.baseline = store.root / "baselines" / baseline_key(store.config)
                    job.refresh()
                    jobs.append(job)
            except Exception as error:                  # whatever it is, a run of it would meet it too
                told = user_error(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
                skipped[told].append(row.id)
    return jobs, dict(skipped)


def whole(row: Row, cfg: DictConfig, work: Work) -> bool:
    """Is this a paper's row as its file says, with as many epochs and images as the paper has?"""
    paper = cfg.recipe.paper_epochs
    if row.claim is None or paper is None or cfg.dataset.limit is not None:
        return False
    stages = [stage for stage in STAGES if stage != "baseline" or not cfg.model.weights]
    epochs = {**work.epochs, "recover": cfg.recipe.recover.epochs}         # without those between rounds
    config = json.loads(json.dumps(OmegaConf.to_container(cfg, resolve=True)))
    return (all(epochs[stage] == paper[stage] for stage in stages)
            and not departures(row, {group: cfg[group].name for group in GROUPS}, flat(config)))


class Look:
    """look(cfg) -> Work. Nets and datasets are read once each. Raises UserError where the data is not there."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}                 # what was made of a config, or the UserError it raised

    def __call__(self, cfg: DictConfig) -> Work:
        model, dataset = (OmegaConf.to_container(cfg[part], resolve=True) for part in ("model", "dataset"))
        model, method = {**model, "weights": None}, instantiate(cfg.method)
        example = cfg.dataset.channels, cfg.dataset.size, cfg.dataset.size
        images, tested = self._once(lambda: self._data(dataset), "data", dataset)
        macs = self._once(lambda: cost(models.build(model), torch.zeros(1, *example)).macs, model, example)
        between = self._once(lambda: self._between(method, model, example), cfg.method.get("rounds"), model, example)
        recipe = cfg.recipe
        epochs = {"baseline": 0 if cfg.model.weights else recipe.baseline.epochs,
                  "sparse": recipe.sparse.epochs if method.trains_sparse and recipe.sparse else 0,
                  "recover": recipe.recover.epochs + between if method.prunes and recipe.recover else 0}
        return Work(model, example, recipe.batch_size, macs, images, tested, epochs,
                    {k: v for k, v in dataset.items() if k != "data_dir"}, device(cfg))

    def _once(self, make: Callable[[], Any], *what: Any) -> Any:
        name = json.dumps(what, default=str, sort_keys=True)
        if name not in self.known:
            try:
                self.known[name] = make()
            except UserError as error:
                self.known[name] = error
        if isinstance(self.known[name], UserError):
            raise self.known[name]
        return self.known[name]

    @staticmethod
    def _data(dataset: dict) -> tuple[int, int]:
        """-> images in an epoch, forward passes of the measurements: the baseline, before and after recovery"""
        with offline(), contextlib.redirect_stdout(io.StringIO()):
            parts = instantiate({**dataset, "normalize": "imagenet"}).parts       # own: would read all images
        return len(parts.train), 3 * len(parts.test) + len(parts.val)

    @staticmethod
    def _between(method: Method, model: dict, example: tuple[int, int, int]) -> int:
        """Epochs between rounds, if every group of the net loses a filter: at most so many."""
        def plan() -> dict:
            groups = trace(models.build(model), torch.zeros(1, *example))
            return {group.name: torch.arange(group.size) > 0 for group in groups}

        return sum(turn.epochs or 0 for turn in method.rounds(plan)) if method.prunes else 0


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Downloads fail at once: a campaign's minutes are not for them, and a machine without a network would wait."""
    names = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")
    before = {name: os.environ.pop(name, None) for each in names for name in (each, each.upper())}
    os.environ.update(dict.fromkeys(names[:3], "http://127.0.0.1:9"))          # the discard port: nobody listens
    try:
        yield
    finally:
        for name in before:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
