"""Sweeps: which rows a pattern names, which cells are missing, and what a cell that fails does (it is noted, the others
run, the end tells)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
import traceback
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from reprune.errors import UserError, user_error
from reprune.files import writable, write_json
from reprune.results.rows import bounded, rows_of
from reprune.runs.checks import check
from reprune.runs.compose import Composer, outside_of_jobs
from reprune.runs.content import one_look
from reprune.runs.control import settle
from reprune.runs.hints import meant, told
from reprune.runs.places import row_files
from reprune.runs.store import Store
from reprune.runs.targets import hold

SWEEP = "REPRUNE_SWEEP"                 # environment variable: the id of the sweep, for jobs in other processes


def expand(overrides: list[str], root: Path) -> list[str]:
    """Row ids of experiments=..., and null in place of a row or a control. Hydra neither globs into folders nor lists
    what they hold, and where a file says null, its command line says []: no choice from this group.

    "experiments=glob(li2017/*)" -> "experiments=li2017/resnet110-A,li2017/resnet110-B,..."; other overrides stay.
    "control=null,random" -> "control=[],random". Raises UserError with the valid ids where one is unknown.
    """
    name = "experiments="
    return [name + ",".join(rows(o.removeprefix(name), root)) if o.startswith(name) else
            re.sub(r"\bnull\b", "[]", o) if o.startswith("control=") else o for o in overrides]


def rows(choice: str, root: Path) -> list[str]:
    files, chosen = row_files(root), []
    for part in choice.split(","):
        pattern = re.fullmatch(r"glob\((.*)\)", part)
        found = sorted(v for v in files if fnmatch(v, pattern[1])) if pattern else [part] * (part in files)
        if part in ("null", "[]"):
            found = ["[]"]
        elif not found:
            raise UserError(f"experiments={part} matches no row{meant(part, files)}; the rows are: "
                            f"{', '.join(sorted(files))}")
        else:                                                     # Hydra acts on a file before anyone else looks at it
            rows_of(root, found)
        chosen += found
    return chosen


class Cells:
    """The cells of one sweep: those that are finished are named, published for the row that asks, and not launched.

    A cell is left out only if its record lies under the very key that its job would compute. Hence what this process
    cannot know for sure is left to the job, which looks again and skips as well: a config that does not compose or
    resolve here (a job then tells why), or that depends on the job (${hydra:...}, hydra.job.env_set, hydra.job.chdir).
    What both read alike is files, the working directory and the environment of the command: a launcher that starts
    jobs elsewhere has to pass them on for its jobs to find their data.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig):
        self.compose = Composer(loader, config.hydra.job.config_name, config.hydra.overrides.hydra)
        self.output_dir = Path(config.output_dir)
        self.launched: dict[tuple[str, ...], Store | None] = {}   # None: this process cannot tell its key
        self.skipped: list[Store] = []

    @one_look()
    def missing(self, cells: Sequence[Sequence[str]]) -> list[list[str]]:
        """The overrides of the cells to launch."""
        todo = []
        for cell in cells:
            store, record = self._look(cell)
            if record is None:
                todo.append(list(cell))
                self.launched[tuple(cell)] = store
            else:
                print(f"{store.key}: finished before, nothing to do (force=true runs it again)")
                self.skipped.append(store)
        return todo

    def _look(self, cell: Sequence[str]) -> tuple[Store | None, dict | None]:
        """-> its place, its record where there is nothing to do"""
        try:
            with outside_of_jobs():
                cfg = self.compose(cell)
                store = Store(cfg)
                force, row = cfg.force, cfg.experiment
        except Exception:                                         # whatever it is, the job will meet and tell it
            return None, None
        record = None if force else store.finished()
        try:
            if record is not None:
                store.serve(record, row)
        except UserError:                                         # results_dir cannot be written: the job tells
            return store, None
        return store, record

    def composes(self, cell: Sequence[str]) -> bool:
        try:
            self.compose(cell)
            return True
        except Exception:
            return False

    def count(self) -> str:
        """How the sweep has ended."""
        failed = {note["overrides"] for note in failures(self.output_dir)}
        ended = [("failed" if " ".join(cell) in failed else "done" if store is None or store.finished() else "lost")
                 for cell, store in self.launched.items()]
        lost, before = ended.count("lost"), len(self.skipped)
        return (f"{before + len(ended)} cells: {ended.count('done')} done, {before} finished before, "
                f"{ended.count('failed')} failed" + f", {lost} without a record" * (lost > 0))

    def records(self) -> list[Path]:
        """Of the cells that have finished, now or before."""
        stores = [*self.skipped, *(store for store in self.launched.values() if store is not None)]
        return [store.record_file for store in stores if store.finished()]


@one_look()
def cell(cfg: DictConfig, run: Callable[[DictConfig], dict]) -> float:
    """One run -> its `objective`. Bad input ends a single run with one line, and a cell of a sweep with NaN."""
    what = " ".join(HydraConfig.get().overrides.task)
    if cfg.get("fail_fast") and failures(Path(cfg.output_dir)):
        print(f"not begun, as a cell has failed (fail_fast): {what}")
        return math.nan
    note = Path(cfg.output_dir) / "failed" / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
    try:
        settle(cfg, HydraConfig.get().runtime.choices.get("experiments"))
        hold(OmegaConf.to_container(cfg), HydraConfig.get().overrides.task)
        check(cfg)
        note = note.with_stem(Store(cfg).key)                     # unless it has none: a file of weights is missing
        value = objective(run(cfg), cfg.search.macs)
    except Exception as error:
        line = told(error)
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            if user_error(error) or isinstance(error, InstantiationException):     # it wraps what a method raises
                raise SystemExit(f"error: {line}") from None
            raise
        print(f"error: {line}\n  in: {what}", file=sys.stderr)
        content = {"sweep": os.environ.get(SWEEP), "overrides": what, "error": line,
                   "traceback": traceback.format_exc(), "when": datetime.now(UTC).isoformat("T", "seconds")}
        try:
            write_json(note, content)
        except UserError:                                         # a full disk may be why the cell has failed
            if Summary.unwritten is None:
                raise                                             # a job of its own: its launcher tells the sweep
            Summary.unwritten.append(content)
        return math.nan
    with suppress(OSError):                                       # a finished cell, on a disk that is read-only
        note.unlink(missing_ok=True)
    return value


def objective(record: dict, macs: float | None = None) -> float:
    """What a search maximises: top-1 in percent on the held-out images; NaN where none are held out.

    macs: the share of the baseline's MACs that may stay. A net that keeps more is worth less than nothing, by the
    excess in percent, so that a search finds its way back.

    >>> record = {"baseline": {"macs": 200}, "pruned": {"macs": 120, "val_top1": 91.0}}
    >>> objective(record), objective(record, macs=0.6), objective(record, macs=0.5)
    (91.0, 91.0, -10.0)
    """
    left = record["pruned"].get("macs_mean", record["pruned"]["macs"])
    excess = 100 * (left / record["baseline"]["macs"] - (1 if macs is None else macs))
    if excess > 0:
        return -round(excess, 4)
    value = record["pruned"].get("val_top1")
    return math.nan if value is None else value


def failures(output_dir: Path) -> list[dict]:
    """The notes of this sweep's cells that have failed."""
    notes = map(noted, sorted(output_dir.glob("failed/*.json")))
    return [note for note in notes if note.get("sweep", ...) == os.environ.get(SWEEP)] + (Summary.unwritten or [])


def noted(file: Path) -> dict:
    """What a cell that has failed has left; {}: nothing that can be read. This sweep's are whole."""
    with suppress(UserError, OSError, ValueError, RecursionError):
        note = json.loads(bounded(file).read_text(encoding="utf-8"))
        return note if isinstance(note, dict) else {}
    return {}


class Summary(Callback):
    """At the end of a sweep: the cells that failed, and status 1 if there are any."""

    unwritten: list[dict] | None = None     # in the process of the sweep: notes of cells that its disk did not take

    def on_run_start(self, config: DictConfig, **kwargs) -> None:
        """Ends the command with a line where nothing can be written: Hydra itself writes there, and fails with many."""
        try:
            writable("output_dir", Path(config.output_dir))
        except UserError as error:
            sys.exit(f"error: {error}")

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        self.on_run_start(config)
        os.environ[SWEEP], Summary.unwritten = uuid.uuid4().hex, []

    @classmethod
    def lost(cls, what: str, line: str) -> None:
        """Something beside the cells has ended the sweep."""
        cls.unwritten.append({"overrides": what, "error": line})

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        failed = failures(Path(config.output_dir))
        for note in failed:
            print(f"failed: {note['overrides']}\n        {note['error']}", file=sys.stderr)
        if failed:
            sys.exit(f"{len(failed)} cell(s) of the sweep failed; the same command tries them again and skips the rest")
