"""Where a sweep stands: cells done, running, failed, cut off or missing; time spent, and an estimate of what is left.

    python -m reprune status [--all] [the overrides of a sweep]
    python -m reprune status experiments='glob(li2017/*)' seed=0,1,2
    python -m reprune status method=l1                  # one run: its key, and the key of its baseline

It takes the overrides of `python run.py -m ...` and runs nothing. A key names a folder: <output_dir>/<key> of a run,
<output_dir>/baselines/<key> of a baseline. Of a long sweep it lists what is running, cut off or failed (one cell per
error), or, with --all, every cell. The exit status is 1 if a cell has failed.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from filelock import FileLock, Timeout
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from tabulate import tabulate

from reprune.errors import UserError, user_error
from reprune.runs.compose import Composer, outside_of_jobs
from reprune.runs.store import Store, baseline_key
from reprune.sweeps.cells import expand

LONG = 40                               # cells: more are not listed one by one


@dataclass
class Cell:
    """One run of a sweep."""

    what: list[str]         # its overrides
    kind: tuple = ()        # runs of a kind take about as long
    key: str = ""
    baseline: Path | None = None        # the folder it is in; None: not trained here
    state: str = "missing"
    seconds: float | None = None
    note: str = ""


def cells(overrides: list[str], root: Path) -> Iterator[Cell]:
    """The runs that `python run.py -m OVERRIDES` consists of. Raises UserError for overrides that do not compose."""
    os.environ.setdefault("REPRUNE_ROOT", str(root))
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        try:
            parsed = OverridesParser.create(loader).parse_overrides(expand(overrides, root))
            compose = Composer(loader)
            for one in BasicSweeper.split_arguments(parsed, None)[0]:
                try:
                    cell = look(compose(one), one)
                except UserError as error:                        # this row has no such control
                    cell = Cell(one, state="failed", note=str(error))
                yield cell
        except (HydraException, ValueError) as error:             # ValueError: method=3
            raise UserError(" ".join(str(error).split())) from error


def look(cfg: DictConfig, what: list[str]) -> Cell:
    """What the files of one run say."""
    cell = Cell(what)
    try:
        with outside_of_jobs():
            store = Store(cfg)
            cell.kind = (cfg.method.name, cfg.model.name, cfg.dataset.name, cfg.recipe.name)
            given = cfg.model.weights
    except Exception as error:                                    # a run of it would fail in the same way
        cell.state, cell.note = "failed", user_error(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        return cell
    cell.key, failed = store.key, store.root / "failed" / f"{store.key}.json"
    cell.baseline = store.root / "baselines" / baseline_key(store.config) if not given else None
    if record := store.finished():
        cell.state, cell.seconds = "done", sum(record["seconds"].values())
    elif running(store.folder / "lock"):
        cell.state, cell.note = "running", stage(store, cell.baseline)
    elif failed.is_file():
        cell.state, cell.note = "failed", error_in(failed)
    elif (store.folder / "stages").is_dir():
        cell.state, cell.note = "cut off", stage(store, cell.baseline)
    return cell


def running(lock: Path) -> bool:
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:                                               # not ours to lock: nothing is known
        return False


def stage(store: Store, baseline: Path | None) -> str:
    """How far a run is that has not ended: what it has written last."""
    if baseline is not None and not trained(baseline):
        return "baseline"
    files = [f for f in (store.folder / "stages").glob("[!.]*") if f.is_file()]
    if not files:
        return ""
    last = max(files, key=lambda f: f.stat().st_mtime)
    return last.stem if last.suffix == ".ckpt" else f"after {last.stem}"


def error_in(note: Path) -> str:
    try:
        return json.loads(note.read_text(encoding="utf-8"))["error"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{note} cannot be read"


def left(found: list[Cell]) -> float | None:
    """Seconds, if all cells that are not done take as long as done ones of their kind (or of any, where none is)."""
    done = [c for c in found if c.state == "done"]
    if not done:
        return None
    return sum(mean([d.seconds for d in done if d.kind == c.kind] or [d.seconds for d in done])
               for c in found if c.state != "done")


def listed(found: list[Cell], everything: bool) -> list[Cell]:
    """The cells to show: of many, those that someone may have to look at, and every error once."""
    if everything or len(found) <= LONG:
        return found
    errors = Counter(c.note for c in found if c.state == "failed")
    shown = []
    for cell in found:
        if cell.state in ("running", "cut off"):
            shown.append(cell)
        elif cell.state == "failed" and (times := errors.pop(cell.note, 0)):
            cell.note += f" ({times} cells)" * (times > 1)
            shown.append(cell)
    return shown


def show(found: list[Cell], everything: bool) -> None:
    common = set.intersection(*(set(c.what) for c in found))
    rows = [(c.key, c.state, "" if c.seconds is None else f"{c.seconds / 60:.1f}",
             "\n".join(filter(None, [" ".join(w for w in c.what if w not in common), c.note])))
            for c in listed(found, everything)]
    if rows:
        print(tabulate(rows, ("key", "state", "minutes", "cell"), "plain", disable_numparse=True) + "\n")
    baselines = {c.baseline for c in found if c.baseline is not None}
    spent, rest = sum(c.seconds or 0 for c in found), left(found)
    counts = ", ".join(f"{n} {state}" for state, n in Counter(c.state for c in found).items())
    there = f"{sum(map(trained, baselines))} of {len(baselines)} baselines trained"
    print(f"{len(found)} cells: {counts}; {there}; {spent / 60:.1f} minutes spent" + (
        f", about {rest / 60:.1f} left, one by one" if rest else ""))


def show_one(cell: Cell) -> None:
    minutes = "" if cell.seconds is None else f"{cell.seconds / 60:.1f} minutes"
    print(f"key       {cell.key}")
    if cell.baseline is not None:
        print(f"baseline  {cell.baseline.name}  {'trained' if trained(cell.baseline) else 'missing'}")
    print("  ".join(filter(None, [f"state     {cell.state}", minutes, cell.note])))


def trained(baseline: Path) -> bool:
    return (baseline / "baseline.json").is_file()


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if set(given) & {"-h", "--help"}:
        print(__doc__)
        return 0
    try:
        found = list(cells([o for o in given if o not in ("-m", "--multirun", "--all")], Path.cwd()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if len(found) == 1:
        show_one(*found)
    elif found:
        show(found, "--all" in given)
    return int(any(cell.state == "failed" for cell in found))
