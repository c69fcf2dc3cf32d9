"""Where a sweep stands: cells done, running, failed, cut off or missing; time spent, and an estimate of what is left.

A key names a folder: <output_dir>/<key> of a run, <output_dir>/baselines/<key> of a baseline. Superseded: its record is
of other code than today's.
"""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from tabulate import tabulate

from reprune.errors import UserError
from reprune.results.rows import bounded
from reprune.runs.compose import Composer, composing
from reprune.runs.content import one_look
from reprune.runs.fingerprint import changed
from reprune.runs.hints import refused, told
from reprune.runs.store import Store, baseline_key
from reprune.schema import GROUPS
from reprune.sweeps.cells import expand, noted

DONE, RUNNING, FAILED, CUT_OFF, MISSING = "done", "running", "failed", "cut off", "missing"
SUPERSEDED = "superseded"               # by today's code: see Store.look
TRAINED = "trained"
LONG = 40                               # cells: more are not listed one by one


def state(store: Store) -> tuple[str, str]:
    """What the files of a run say: DONE, ..., or MISSING; and how far it is, or why it has failed."""
    note = store.root / "failed" / f"{store.key}.json"
    record, why = store.look()
    if record and not why:
        return DONE, ""
    if locked(store.folder / "lock"):
        return RUNNING, stage(store)
    if note.is_file():
        return FAILED, error_in(note)
    if (store.folder / "stages").is_dir():
        return CUT_OFF, stage(store)
    return (SUPERSEDED if record else MISSING), why


def locked(lock: Path) -> bool:
    """By a process that lives."""
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:                                               # not ours to lock: nothing is known
        return False


def stage(store: Store) -> str:
    """How far a run is that has not ended: what it has written last."""
    if not trained(store):
        return "baseline"
    files = [f for f in (store.folder / "stages").glob("[!.]*") if f.is_file()]
    if not files:
        return ""
    last = max(files, key=lambda f: f.stat().st_mtime)
    return last.stem if last.suffix == ".ckpt" else f"after {last.stem}"


def error_in(note: Path) -> str:
    said = str(noted(note).get("error", f"{note} cannot be read"))[:2000]
    return "".join(c if c.isprintable() else " " for c in said)   # the note may be anyone's


def last_line(log: Path, status: int) -> str:
    """Why a run has failed, as far as its output says."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]]
    said = [line for line in lines if line and "HYDRA_FULL_ERROR" not in line]
    errors = [line for line in said if re.match(r"error: |[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (errors or said or [f"exit status {status}"])[-1]


def baseline(store: Store) -> Path | None:
    """The folder of the net that a run prunes; None: its weights are given."""
    given = store.config["model"].get("weights")
    return None if given else store.root / "baselines" / baseline_key(store.config)


def baseline_state(store: Store) -> str:
    """TRAINED (also where the weights are given), MISSING, or SUPERSEDED with the parts that other code has made. Its
    net is not looked at: whoever wants it does."""
    net = baseline(store)
    if net is None:
        return TRAINED
    try:
        content = json.loads(bounded(net / "baseline.json").read_text(encoding="utf-8"))
        parts = changed(content["facts"]["code"], store.baseline_code)
    except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError):        # not there, or damaged
        return MISSING
    return f"{SUPERSEDED} ({parts})" if parts else TRAINED


def trained(store: Store) -> bool:
    """Is there a net to prune, of today's code?"""
    return baseline_state(store) == TRAINED


@dataclass(eq=False)
class Cell:
    """One run of a sweep."""

    what: list[str]                     # its overrides
    state: str
    note: str
    key: str = ""
    baseline: Path | None = None
    net: str = ""                       # the state of that baseline
    kind: tuple = ()                    # runs of a kind take about as long
    seconds: float | None = None        # that it took


def look(compose: Composer, what: list[str]) -> Cell:
    try:
        cfg = compose(what)
        store, kind = Store(cfg), tuple(cfg[part].name for part in GROUPS)
    except (HydraException, ValueError):
        raise
    except Exception as error:                                    # a run of it would fail in the same way
        return Cell(what, FAILED, told(error))
    says, note = state(store)
    seconds = sum(store.look()[0]["seconds"].values()) if says == DONE else None
    return Cell(what, says, note, store.key, baseline(store), baseline_state(store), kind, seconds)


def cells(overrides: list[str], root: Path) -> list[Cell]:
    """The runs that `python run.py -m OVERRIDES` consists of. Raises UserError for overrides that do not compose."""
    with one_look(), composing(root) as compose:
        try:
            parsed = OverridesParser.create(compose.loader).parse_overrides(expand(overrides, root))
            return [look(compose, one) for one in BasicSweeper.split_arguments(parsed, None)[0]]
        except (HydraException, ValueError) as error:             # ValueError: method=3
            raise UserError(refused(error, overrides, root)) from error


def left(found: list[Cell]) -> float:
    """Seconds, if all cells that are not done take as long as done ones of their kind (or of any, where none is)."""
    done = [c for c in found if c.state == DONE]
    return sum(mean([d.seconds for d in done if d.kind == c.kind] or [d.seconds for d in done])
               for c in found if c.state != DONE and done)


def notable(found: list[Cell]) -> list[Cell]:
    """The cells that someone may have to look at, and every error once."""
    failed = Counter(c.note for c in found if c.state == FAILED)
    first = {c.note: c for c in reversed(found) if c.state == FAILED}
    for note, cell in first.items():
        cell.note += f" ({failed[note]} cells)" * (failed[note] > 1)
    return [c for c in found if c.state in (RUNNING, CUT_OFF, SUPERSEDED) or c in first.values()]


def show(found: list[Cell], everything: bool) -> None:
    common = set.intersection(*(set(c.what) for c in found))
    rows = [(c.key, c.baseline and c.baseline.name + f" {c.net}" * c.net.startswith(SUPERSEDED), c.state,
             c.seconds and f"{c.seconds / 60:.1f}",
             "\n".join(filter(None, [" ".join(w for w in c.what if w not in common), c.note])))
            for c in (found if everything or len(found) <= LONG else notable(found))]
    if rows:
        print(tabulate(rows, ("key", "baseline", "state", "minutes", "cell"), "plain", disable_numparse=True) + "\n")
    nets = Counter({c.baseline: c.net.split()[0] for c in found if c.baseline is not None}.values())
    counts = ", ".join(f"{n} {state}" for state, n in Counter(c.state for c in found).items())
    print(f"{len(found)} cells: {counts}; {nets[TRAINED]} of {nets.total()} baselines trained"
          + f", {nets[SUPERSEDED]} {SUPERSEDED}" * (SUPERSEDED in nets)
          + f"; {sum(c.seconds or 0 for c in found) / 60:.1f} minutes spent"
          + (f", about {rest / 60:.1f} left, one by one" if (rest := left(found)) else ""))
