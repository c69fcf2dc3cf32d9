"""Sweeps: which rows a pattern names, and what a cell that fails does (it is noted, the others run, the end tells)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
import traceback
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from reprune.errors import UserError, user_error
from reprune.store import Store, write_json

SWEEP = "REPRUNE_SWEEP"                 # environment variable: the id of the sweep, for jobs in other processes


def expand(overrides: list[str], root: Path) -> list[str]:
    """Row ids of experiments=...: Hydra neither globs into folders nor lists what they hold.

    "experiments=glob(li2017/*)" -> "experiments=li2017/resnet110-A,li2017/resnet110-B,..."; other overrides stay.
    Raises UserError with the valid ids where one is unknown.
    """
    name = "experiments="
    return [name + ",".join(rows(o.removeprefix(name), root)) if o.startswith(name) else o for o in overrides]


def rows(choice: str, root: Path) -> list[str]:
    valid = sorted(p.relative_to(root / "experiments").with_suffix("").as_posix()
                   for p in (root / "experiments").glob("*/*.yaml"))
    chosen = []
    for part in choice.split(","):
        pattern = re.fullmatch(r"glob\((.*)\)", part)
        found = [v for v in valid if fnmatch(v, pattern[1])] if pattern else [v for v in valid if v == part]
        if not found and part != "null":
            raise UserError(f"experiments={part} matches no row; the rows are: {', '.join(valid)}")
        chosen += found or [part]
    return chosen


def cell(cfg: DictConfig, run: Callable[[DictConfig], dict]) -> float:
    """One run -> its `objective`. Bad input ends a single run with one line, and a cell of a sweep with NaN."""
    note = Path(cfg.output_dir) / "failed" / f"{_name(cfg)}.json"
    try:
        value = objective(run(cfg), cfg.search.macs)
    except Exception as error:
        line = user_error(error)                                  # Hydra and Lightning wrap what a method raises
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            if line:
                raise SystemExit(f"error: {line}") from None
            raise
        line = line or f"{type(error).__name__}: {' '.join(str(error).split())}"
        what = " ".join(HydraConfig.get().overrides.task)
        print(f"error: {line}\n  in: {what}", file=sys.stderr)
        write_json(note, {"sweep": os.environ.get(SWEEP), "overrides": what, "error": line,
                          "traceback": traceback.format_exc(), "when": datetime.now(UTC).isoformat("T", "seconds")})
        return math.nan
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
    excess = 100 * (record["pruned"]["macs"] / record["baseline"]["macs"] - (1 if macs is None else macs))
    if excess > 0:
        return -round(excess, 4)
    value = record["pruned"].get("val_top1")
    return math.nan if value is None else value


def _name(cfg: DictConfig) -> str:
    """The run's key; where it has none (a missing file of weights), a hash of the overrides."""
    try:
        return Store(cfg).key
    except Exception:
        return hashlib.sha256(" ".join(HydraConfig.get().overrides.task).encode()).hexdigest()[:16]


class Summary(Callback):
    """At the end of a sweep: the cells that failed, and status 1 if there are any."""

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        os.environ[SWEEP] = uuid.uuid4().hex

    def on_multirun_end(self, config: DictConfig, **kwargs) -> None:
        notes = [json.loads(file.read_text()) for file in sorted(Path(config.output_dir).glob("failed/*.json"))]
        failed = [note for note in notes if note["sweep"] == os.environ[SWEEP]]
        for note in failed:
            print(f"failed: {note['overrides']}\n        {note['error']}", file=sys.stderr)
        if failed:
            sys.exit(f"{len(failed)} cell(s) of the sweep failed; the same command tries them again and skips the rest")
