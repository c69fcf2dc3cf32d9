"""What tests/faults.py has counted, and results/faults.md, which says so."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from attempts import Attempt
from hostile import Count
from tabulate import tabulate

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS, RACES, DISKS = "Kills", "Races", "Disks"


@dataclass
class Part:
    """What happened in one part of the drive."""

    name: str
    section: str
    sweeps: int = 0
    attempts: int = 0
    kills: Counter = field(default_factory=Counter)               # (signal, moment) -> how many
    records: int = 0                                              # compared, and identical
    temporary: int = 0                                            # files in the system's temporary folder
    full: int = 0                                                 # attempts that a disk has ended

    def killed(self, what: signal.Signals, attempt: Attempt) -> None:
        self.kills[what.name, attempt.moment()] += 1

    def ended(self, records: int, folder: Path, attempts: int) -> None:
        """A sweep, with so many records that are as they were to be."""
        self.records += records
        self.sweeps, self.attempts = self.sweeps + 1, self.attempts + attempts
        self.temporary += len(list((folder / "tmp").iterdir()))


def report(parts: list[Part], counts: list[Count], seconds: float, args: argparse.Namespace) -> str:
    kills = sum((p.kills for p in parts), Counter())
    moments, names = ["start-up", "baseline", "sparse", "recover", "between runs"], [s.name for s in SIGNALS]
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "pytorch-lightning", "hydra-core"))
    machine = f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}, {versions}"
    by_moment = [[moment, *(kills[name, moment] for name in names)] for moment in moments]
    read = [[c.kind, c.files, c.results, c.lines, 0, 0, f"{c.seconds:.1f}", f"{c.mib:.0f}"] for c in counts]
    sums = Counter()
    for p in parts:
        sums.update(sweeps=p.sweeps, attempts=p.attempts, kills=p.kills.total(), disks=p.full, records=p.records)
    return f"""# Faults

Made by `make faults` in {seconds / 60:.0f} minutes, seed {args.seed}. {machine}.

Small sweeps on the digits are killed, race, or lose their disk, and their command is typed again until it ends. Then
every record is compared with that of a sweep that nothing disturbed (all but times, memory and versions), and every net
bit for bit; no file may be half-written or left over, and no lock held. The first difference ends the drive with an
error, so every record counted here was identical.

## Kills

{section(parts, KILLS)}

What the attempts were at when they were killed, those of races included:

{tabulate(by_moment, ["", *names], tablefmt="github")}

## Races

Processes at once that need one baseline, or the same run:

{section(parts, RACES)}

## Disks

{section(parts, DISKS) if any(p.section == DISKS for p in parts) else "Not mounted here: only root may."}

## Hostile files

Each is read by all that reads files of its kind, in a process of its own. A file is one that a sweep, a person or a
stranger might leave: empty, cut off, with bits flipped, random, a pipe, a hole of 3 GiB, nested a million times; with
commands, pickles, `_target_`s, markup, escape sequences or absurd numbers. A traceback, a second line or a command that
runs ends the drive with an error. Seconds of a processor, and MiB above those at the start: of the worst file.

{tabulate(read, ["", "files", "a result", "lines", "tracebacks", "code that ran", "seconds", "MiB"], tablefmt="github")}

## Counts

{sums["sweeps"]} sweeps, {sums["attempts"]} attempts, {sums["kills"]} kills, {sums["disks"]} attempts that a disk ended,
{sums["records"]} records, all identical; {sum(c.files for c in counts)} hostile files, no traceback, no code that ran.
"""


def section(parts: list[Part], name: str) -> str:
    """The table of the parts of one section."""
    signals = [s.name for s in SIGNALS] if name != DISKS else []
    rows = [[p.name, p.sweeps, p.attempts, *(sum(n for (s, _), n in p.kills.items() if s == what) for what in signals),
             *([p.full] if name == DISKS else []), p.records, p.temporary] for p in parts if p.section == name]
    columns = ["", "sweeps", "attempts", *signals, *(["ended by the disk"] if name == DISKS else []),
               "records, all identical", "left in /tmp"]
    return tabulate(rows, columns, tablefmt="github")
