"""What the benchmarks share: turns, ratios, peak memory, targets. Not a benchmark itself; `make bench` runs those.

A benchmark is a file of this folder with `main() -> list[dict]`, one dict per line of its table. It may also have
`missing() -> str | None`, why it cannot be measured on this machine, and `targets(rows) -> list[dict]`, made by
`at_most` and `at_least` from the lines of its table (of none, where it was not measured).
"""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any


def turns(ways: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each way in every round. They take turns (A B A B ..): a machine that slows down slows all of them."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            start = perf_counter()
            way()
            if number >= warm_up:
                taken[name].append(perf_counter() - start)
    return taken


def ratio(these: list[float], those: list[float]) -> float:
    """Median of these / those, each taken inside its round.

    >>> ratio([2, 30, 4], [1, 10, 4])
    2.0
    """
    return median(a / b for a, b in zip(these, those, strict=True))


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    """Columns for the lowest and the highest of some rounds."""
    return {"lowest": round(min(values), digits), "highest": round(max(values), digits)}


def process(*command: str, **options: Any) -> tuple[float, float, float]:
    """-> seconds, seconds of CPU, peak MiB of a Python command in a process of its own. options: of subprocess.run"""
    measure = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
               "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
               "print(used.ru_utime + used.ru_stime, used.ru_maxrss)")
    start = perf_counter()
    said = subprocess.run([sys.executable, "-c", measure, sys.executable, *command], check=True, capture_output=True,
                          text=True, **options).stdout
    seconds = perf_counter() - start
    cpu, peak = map(float, said.split())
    return seconds, cpu, peak / 1024


highest: list[float] = []                                         # MiB, the peaks that `peak` makes the system forget


def peak(way: Callable[[], Any]) -> tuple[Any, float, float | None]:
    """-> what `way` returns, its seconds, and the MiB that this process held at most during it beyond those before, or
    None where the system does not tell (Linux does)."""
    gc.collect()
    try:
        highest.append(_status("VmHWM"))
        ctypes.CDLL(None).malloc_trim(0)                          # else memory freed before is used again
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")                                       # the peak begins here
        before = _status("VmRSS")
    except (OSError, AttributeError, StopIteration):
        before = None
    start = perf_counter()
    result = way()
    seconds = perf_counter() - start
    return result, seconds, None if before is None else max(0.0, _status("VmHWM") - before)


def _status(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    with open("/proc/self/status") as file:
        return next(float(line.split()[1]) for line in file if line.startswith(f"{name}:")) / 1024


def value(rows: list[dict], column: str, **where: Any) -> float | None:
    """Of the first line that is so; None where there is none. where: column=value, with _ for every space.

    >>> value([{"way": "a", "times faster": 1}, {"way": "b", "times faster": 3}], "times faster", way="b")
    3
    """
    for row in rows:
        if column in row and all(row.get(name.replace("_", " ")) == wanted for name, wanted in where.items()):
            return row[column]
    return None


def at_most(what: str, measured: float | None, limit: float, unit: str = "") -> dict:
    """A target that is met where `measured` is not above `limit`; not measured where it is None."""
    return _target(what, f"at most {limit:,g}{unit}", measured, unit,
                   None if measured is None else measured / limit - 1)


def at_least(what: str, measured: float | None, limit: float, unit: str = "") -> dict:
    """As `at_most`, the other way round.

    >>> at_least("times faster", 1.5, 2)
    {'what': 'times faster', 'target': 'at least 2', 'measured': '1.5', 'met': 'no, missed by 25 %'}
    """
    return _target(what, f"at least {limit:,g}{unit}", measured, unit,
                   None if measured is None else 1 - measured / limit)


def _target(what: str, target: str, measured: float | None, unit: str, over: float | None) -> dict:
    if over is None:
        return {"what": what, "target": target, "measured": "not measured", "met": "not measured"}
    return {"what": what, "target": target, "measured": f"{measured:,.4g}{unit}",
            "met": "yes" if over <= 0 else f"no, missed by {100 * over:.2g} %"}
