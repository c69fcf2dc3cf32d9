"""Finished runs side by side: what each cell of a sweep reaches, at which cost, averaged over its seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from reprune.errors import UserError
from reprune.results.lines import Line, averaged, entry
from reprune.results.records import Run, config_id, norms_of, read_record
from reprune.results.render.text import points, spread
from reprune.results.rows import flat
from reprune.runs.fingerprint import PARTS
from reprune.runs.store import counted
from reprune.schema import GROUPS, Row

COLUMNS = ("cell", "seeds", "baseline top-1", "top-1", "delta", "MACs", "params", "speed-up")
APART = 1.0                                             # points of the MACs: cells that keep so much more are no match


def records_in(folder: Path) -> list[Path]:
    """Of one run, of a folder of runs (outputs), or of results."""
    return sorted(file for form in ("record.json", "*/record.json", "runs/*.json") for file in folder.glob(form))


def lines_of(files: Iterable[Path], errors: list[str]) -> list[Line]:
    """One for the runs that differ in nothing but the seed, by dataset, model and label; a bad file becomes a line in
    `errors`."""
    alike: dict[tuple, dict[str, Run]] = defaultdict(dict)
    configs: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            record = read_record(file)
        except (UserError, OSError) as error:
            errors.append(f"{file}: {error}")
            continue
        run = Run(record, config_id(counted(record.config)), norms_of(record.group_norms or {}))
        alike[run.same][record.key] = run                         # once, wherever its record lies
        configs.setdefault(run.config_id, flat(record.config))
    lines = [averaged(row_of(runs[0]), runs, configs[runs[0].config_id])
             for of in alike.values() for runs in [list(of.values())]]
    for line, label in zip(lines, labels(lines), strict=True):
        line.setting = label
        line.values = {**entry(line), "row": line.runs[0].record.experiment, "command": None}
    return sorted(lines, key=lambda line: (line["dataset"], line["model"], line.setting))


def row_of(run: Run) -> Row:
    """What `averaged` wants of a row; what a paper claims is no matter here."""
    return Row.read({"id": run.record.experiment or "none", "title": "run", "command": "python run.py", "claim": None,
                     "choices": {}, "config": {}})


def labels(lines: list[Line]) -> list[str]:
    """How each line differs from the others: by its row or its choices; where these are the same, by single values."""
    facts = []
    for line in lines:
        of = line.runs[0].record
        code = {f"code.{part}": (of.code or {}).get(part) for part in PARTS}
        facts.append(line.config | code | {name: getattr(of, name) for name in ("experiment", "control", *GROUPS)})

    def differ(some: list[dict[str, Any]]) -> list[str]:
        return [name for name in dict.fromkeys(name for one in some for name in one)
                if len({repr(one.get(name)) for one in some}) > 1]

    groups = [name for name in differ(facts) if name in GROUPS] or ["method"]
    said = []
    for own in facts:
        head = ["experiment", "control"] if own["experiment"] else ["experiment", *groups]
        peers = [one for one in facts if all(one.get(name) == own.get(name) for name in head)]
        said.append(" ".join(f"{name}={own[name]}" for name in (*head, *differ(peers)) if own.get(name) is not None))
    return said


def table(lines: list[Line], form: str = "simple") -> str:
    """For people; form: of tabulate."""
    cells = [(line.setting, line["seeds"], f"{line['baseline_top1']:.2f}", spread(line, "pruned_top1"),
              points(line["delta"]) + (f" ± {line['delta_std']:.2f}" if line["delta_std"] is not None else ""),
              *(f"{size(line[f'{what}_pruned'])} (-{line[f'{what}_drop']:.1f} %)" for what in ("macs", "params")),
              f"{line['latency_ratio']:.2f}x") for line in lines]
    return tabulate(cells, COLUMNS, form, disable_numparse=True, colalign=("left", *["right"] * (len(COLUMNS) - 1)))


def size(number: float) -> str:
    """
    >>> size(125485696), size(853018), size(512)
    ('125.5 M', '853.0 k', '512')
    """
    return next((f"{number / unit:.1f} {name}" for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k"))
                 if number >= unit), f"{number:.0f}")


def unequal(lines: list[Line]) -> list[str]:
    """A sentence for each net, or row of a paper, whose cells keep different shares of its MACs: their deltas are no
    comparison. Cells that remove nothing are what the others are held against."""
    nets: dict[tuple, list[Line]] = defaultdict(list)
    for line in lines:
        if line["macs_drop"]:
            nets[line["dataset"], line["model"], line["row"]].append(line)
    found = []
    for (dataset, model, _), some in nets.items():
        least, most = (pick(some, key=lambda line: line["macs_drop"]) for pick in (min, max))
        if most["macs_drop"] - least["macs_drop"] > APART:
            found.append(f"not at the same MACs on {model}, {dataset}: {100 - least['macs_drop']:.1f} % are kept by "
                         f"{least.setting}, {100 - most['macs_drop']:.1f} % by {most.setting}. One budget for all: "
                         "method/allocation=macs method.allocation.macs=0.5")
    return found


def told(files: Iterable[Path], errors: list[str], form: str = "simple") -> str:
    """The table, and where it compares what is no match; "" where nothing has finished."""
    lines = lines_of(files, errors)
    return "\n\n".join([table(lines, form), *unequal(lines)]) if lines else ""
