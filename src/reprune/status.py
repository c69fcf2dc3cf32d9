"""Where a sweep stands: cells done, running, failed, cut off or missing; time spent, and an estimate of what is left.

    python -m reprune.status [the overrides of a sweep]
    python -m reprune.status experiments='glob(li2017/*)' seed=0,1,2

It takes the overrides of `python run.py -m ...` and runs nothing. The key of a cell names its folder in output_dir.
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
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from rich.console import Console
from rich.table import Table

from reprune.errors import UserError
from reprune.store import Store
from reprune.sweep import expand


@dataclass
class Cell:
    """One run of a sweep."""

    what: str               # its overrides
    kind: tuple             # runs of a kind take about as long
    key: str = ""
    state: str = "missing"
    seconds: float | None = None
    note: str = ""


def cells(overrides: list[str], root: Path) -> Iterator[Cell]:
    """The runs that `python run.py -m OVERRIDES` consists of. Raises UserError for overrides that do not compose."""
    os.environ.setdefault("REPRUNE_ROOT", str(root))
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        try:
            parsed = OverridesParser.create().parse_overrides(expand(overrides, root))
            for one in BasicSweeper.split_arguments(parsed, None)[0]:
                yield look(compose("config", list(one)), " ".join(one))
        except HydraException as error:
            raise UserError(" ".join(str(error).split())) from error


def look(cfg: DictConfig, what: str) -> Cell:
    """What the files of one run say."""
    cell = Cell(what, (cfg.method.name, cfg.model.name, cfg.dataset.name, cfg.recipe.name))
    with open_dict(cfg):
        cfg.experiment = None                                     # not part of the key
    try:
        store = Store(cfg)
    except UserError as error:
        cell.state, cell.note = "failed", str(error)
        return cell
    cell.key, failed = store.key, Path(cfg.output_dir) / "failed" / f"{store.key}.json"
    if record := store.finished():
        cell.state, cell.seconds = "done", sum(record["seconds"].values())
    elif running(store.folder / "lock"):
        cell.state = "running"
    elif failed.is_file():
        cell.state, cell.note = "failed", json.loads(failed.read_text())["error"]
    elif (store.folder / "stages").is_dir():
        cell.state = "cut off"
    return cell


def running(lock: Path) -> bool:
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def left(found: list[Cell]) -> float | None:
    """Seconds, if all cells that are not done take as long as done ones of their kind (or of any, where none is)."""
    done = [c for c in found if c.state == "done"]
    if not done:
        return None
    return sum(mean([d.seconds for d in done if d.kind == c.kind] or [d.seconds for d in done])
               for c in found if c.state != "done")


def main(argv: list[str] | None = None) -> int:
    overrides = sys.argv[1:] if argv is None else argv
    if set(overrides) & {"-h", "--help"}:
        print(__doc__)
        return 0
    try:
        found = list(cells([o for o in overrides if o not in ("-m", "--multirun")], Path.cwd()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = Table("key", "state", "minutes", "cell", box=None)
    for cell in found:
        table.add_row(cell.key, cell.state, "" if cell.seconds is None else f"{cell.seconds / 60:.1f}",
                      f"{cell.what}\n{cell.note}".strip())
    console = Console(soft_wrap=True)
    console.print(table)
    spent, rest = sum(c.seconds or 0 for c in found), left(found)
    counts = ", ".join(f"{n} {state}" for state, n in Counter(c.state for c in found).items())
    console.print(f"{len(found)} cells: {counts}; {spent / 60:.0f} minutes spent"
                  + (f", about {rest / 60:.0f} left on one machine" if rest else ""), highlight=False)
    return int(any(cell.state == "failed" for cell in found))


if __name__ == "__main__":
    sys.exit(main())
