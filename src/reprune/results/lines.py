"""What has run, a line each: the records (records.py) averaged over seeds and joined with the rows and their claims.

    collect(root)       -> the one list of lines that pages, LaTeX, CSV, figures and the HTML page render
    summary(root)       -> the same as plain dicts: the content of results/results.csv

A line holds the runs of one row that differ in nothing but the seed: config, epochs and, where a record has it, the
fingerprint of the code are the same. Records without a fingerprint only know the commit of the whole checkout: they
share a line, and the line lists its commits. A row that has not run has a line of its own. The runs of a row's controls
(`control`) are lines of that row too. A record that is not as it must be becomes one line in `errors`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from reprune.errors import ended
from reprune.results.compose_rows import compose_rows
from reprune.results.records import Run, measured, no_cycles, read_runs
from reprune.results.rows import departures, read_rows
from reprune.results.verdict import verdict
from reprune.runs.fingerprint import PARTS
from reprune.runs.places import project
from reprune.schema import ENDS, GROUPS, STAGES, Paper, Row

COLUMNS = [
    "paper", "row", "control", "section", "setting", "method", "model", "dataset", "recipe", "seeds", "keys", "commits",
    "code", "baseline_source", "baseline_top1", "pruned_top1", "pruned_top1_std", "delta", "delta_std",
    "top1_before_recovery", "top1_best", "params_baseline", "params_pruned", "macs_baseline", "macs_pruned",
    "params_drop", "macs_drop", "density", "bytes", "bytes_ratio", "bits", "latency_ratio", "latency_at",
    *(f"epochs_{stage}" for stage in STAGES), *(f"paper_epochs_{stage}" for stage in STAGES), "seconds",
    "claim_metric", "claim_baseline", "claim_pruned", "claim_delta", "claim_params_drop", "claim_macs_drop",
    "claim_bounds", "claim_source", "claim_provenance", "reconstruction", "verdict", "command"]
NAMED = {"trainer.precision": "32-true"}    # papers do not say: a line tells another one, and counts as the row's own
BOUNDS = {"better_than_baseline": "delta > 0", "no_accuracy_loss": "delta >= 0", "params_drop_min": "params_drop_min",
          "params_drop_max": "params_drop_max", "macs_drop_min": "macs_drop_min", "macs_drop_max": "macs_drop_max"}


@dataclass
class Line:
    """The runs of a row, or of a control of it, that differ in nothing but the seed; or a row that has not run."""

    row: Row
    runs: list[Run] = field(default_factory=list)           # in the order of the seeds
    config: dict[str, Any] = field(default_factory=dict)    # of its runs, flat
    values: dict[str, Any] = field(default_factory=dict)    # see COLUMNS, and averaged(): more than these
    speed: list[tuple[str, float]] = field(default_factory=list)    # (machine, ratio), most runs first
    section: str = "not run"    # full, short (fewer epochs or images than the paper), changed (not the row's file),
    #                             own (a row without a claim), control
    setting: str = ""           # what sets it apart from the row's file and from the row's other lines
    verdict: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    @property
    def control(self) -> str | None:
        return self.runs[0].record.control if self.runs else None

    @property
    def series(self) -> str:
        """Its method; widths that were trained from fresh weights stand apart."""
        config = self.config if self.runs else self.row.config
        return (self["method"] or "unknown") + " from scratch" * bool(config.get("recipe.recover.from_scratch"))

    @property
    def given(self) -> bool:
        return bool(self.runs) and self["baseline_source"] != "trained here"


@dataclass
class Collected:
    """Everything that is rendered."""

    rows: list[Row]
    about: dict[str, Paper]
    lines: list[Line]           # by row, the row's own before its controls'

    def of(self, row: Row, control: str | None = None) -> list[Line]:
        return [line for line in self.lines if line.row is row and line.control == control]


@no_cycles()
def collect(root: Path, errors: list[str], every: bool = False, whole: bool = False) -> Collected:
    """every: compose all rows, to name those that do not; else those that runs are held against. whole: keep all of
    the records."""
    rows, about = read_rows(root, errors)
    runs, configs = read_runs(root, errors, whole)
    by_id, alike = {row.id: row for row in rows}, defaultdict(list)
    for run in runs:
        of = run.record
        if of.experiment in by_id:
            alike[run.same].append(run)
        elif not (project(root) / f"experiments/{of.experiment}.yaml").is_file():
            errors.append(f"results/runs/{of.key}.json: experiment {of.experiment!r} has no file "
                          f"experiments/{of.experiment}.yaml")
    found = defaultdict(list)
    for same in alike.values():
        line = averaged(by_id[same[0].record.experiment], same, configs[same[0].config_id])
        found[line.row.id, line.control].append(line)
    held = {name for name, lines in found.items() if name[1] or any(line.section == "full" for line in lines)}
    composed = compose_rows(root, sorted(held | {(row.id, None) for row in rows if every}, key=str), errors)
    lines = []
    for row in rows:
        for control in sorted({c for name, c in found if name == row.id} | {None}, key=lambda c: c or ""):
            lines += told_apart(found[row.id, control], composed.get((row.id, control))) or [Line(row)]
    for line in lines:
        line.verdict = "" if line.control else verdict(line.row.claim, line.section, line.values)
        line.values = entry(line)
    return Collected(rows, about, lines)


def averaged(row: Row, runs: list[Run], config: dict[str, Any]) -> Line:
    """A line of runs that share `Run.same`. Means and sample standard deviations over the seeds."""
    runs = sorted(runs, key=lambda run: (run.record.seed, run.record.key))
    records = [run.record for run in runs]
    first = records[0]
    code = {part: first.code[part] for part in PARTS if part in first.code} if first.code else None
    values: dict[str, Any] = {
        **{group: getattr(first, group) for group in GROUPS}, "seeds": len({of.seed for of in records}),
        "keys": " ".join(of.key for of in records), "commits": sorted({of.env.git or "unknown" for of in records}),
        "code": code and json.dumps(code, separators=(",", ":")), "baseline_source": first.baseline.source,
        "threads": sorted({of.env.threads for of in records} - {None}),
        "images": config.get("dataset.limit"), "paper_known": first.paper_epochs is not None,
        **{f"epochs_{stage}": getattr(first.epochs, stage) for stage in STAGES},
        **{f"paper_epochs_{stage}": getattr(first.paper_epochs, stage, None) for stage in STAGES}}
    every = [measured(of) for of in records]
    for name in every[0]:
        each = [one[name] for one in every]
        known = None not in each                            # by every run
        mean = fmean(each) if known else 0.0
        values[name] = round(mean, 6) if known else None
        values[f"{name}_std"] = round(deviation(each, mean), 6) if known and len(each) > 1 else None
    line = Line(row, runs, config, values, speed(runs))
    line.section = section(line)
    return line


def deviation(each: list[float], mean: float) -> float:
    """The sample standard deviation: statistics.stdev, which adds up fractions, takes twenty times as long."""
    return math.sqrt(sum((value - mean) ** 2 for value in each) / (len(each) - 1))


def speed(runs: list[Run]) -> list[tuple[str, float]]:
    """(machine, mean latency of the baseline over that of the pruned net); machines with more runs first."""
    ratios = defaultdict(list)
    for run in runs:
        ratios[run.machine].append(run.record.baseline.latency_ms / run.record.pruned.latency_ms)
    return [(machine, round(fmean(each), 6))
            for machine, each in sorted(ratios.items(), key=lambda item: (-len(item[1]), item[0]))]


def section(line: Line) -> str:
    """By the row's file alone; `told_apart` looks closer at what is full by it."""
    if line.control is not None:
        return "control"
    if line.row.claim is None:
        return "own"
    if not line["paper_known"] or line["images"] is not None:
        return "short"
    ran = {stage: line[f"epochs_{stage}"] for stage in STAGES}
    if (last := line.config.get("recipe.recover.epochs")) is not None:
        ran["recover"] = min(ran["recover"], last)                # the last round's
    trained = [stage for stage in STAGES if not (stage == "baseline" and line.given)]
    gap = [ran[stage] - line[f"paper_epochs_{stage}"] for stage in trained]
    if min(gap) < 0:
        return "short"
    return "changed" if max(gap) > 0 or departures(line.row, line.values, line.config) - {*NAMED} else "full"


def strays(line: Line, composed: dict[str, Any]) -> set[str]:
    """Names whose value is not what `experiments=ROW` alone gives: set on the command line. Weights may be given, and
    then the baseline is not trained and images are normalised as the weights want it. Options that are newer than the
    record are no departure."""
    free = ("model.weights", *(["dataset.normalize", "recipe.baseline"] if line.given else []))
    return {name for name, value in line.config.items() if composed.get(name, ...) != value
            and not any(name == one or name.startswith(f"{one}.") for one in free)}


def told_apart(lines: list[Line], composed: dict[str, Any] | None) -> list[Line]:
    """Lines of a row, or of a control of it, with what sets them apart, in a fixed order; composed: the config that
    the row's file stands for, flat."""
    codes = [line.runs[0].record.code or {} for line in lines]
    parts = [part for part in PARTS if any(part in code for code in codes)]
    besides = [{**{group: line[group] for group in GROUPS},
                **{f"code.{part}": code.get(part, "unknown") for part in parts}}
               for line, code in zip(lines, codes, strict=True)]
    apart = differing(besides) | differing([*{id(line.config): line.config for line in lines}.values()])
    plain = {name for name in apart if not name.startswith("code.")}    # code is named where nothing else differs
    if len({json.dumps([{**beside, **line.config}.get(n) for n in sorted(plain)])
            for line, beside in zip(lines, besides, strict=True)}) == len(lines):
        apart = plain
    for line, beside in zip(lines, besides, strict=True):
        other = strays(line, composed) if composed and line.section in ("full", "control") else set()
        if other - {*NAMED} and line.section == "full":
            line.section = "changed"
        other |= {name for name in NAMED if line.config.get(name, NAMED[name]) != NAMED[name]}
        names = apart | other | (set() if line.control else departures(line.row, line.values, line.config))
        named = [n for n in sorted(names) if n in GROUPS                # method=random: all of it, its code too
                 or not {n.split(".")[0], n.partition("code.")[2]} & names]
        line.setting = ", ".join(f"`{n}={json.dumps(beside.get(n, line.config.get(n)))}`".replace('"', "")
                                 for n in named)
    return sorted(lines, key=lambda line: (line.setting, line["keys"]))


def differing(configs: list[dict[str, Any]]) -> set[str]:
    """Names on whose values they do not all agree.

    >>> sorted(differing([{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2.0}]))
    ['b', 'c']
    """
    values = defaultdict(list)
    for config in configs:
        for name, value in config.items():
            values[name].append(repr(value))
    return {name for name, said in values.items() if len(said) < len(configs) or len(set(said)) > 1}


def entry(line: Line) -> dict[str, Any]:
    """All values of a line by name: COLUMNS, None where unknown, and those of `averaged` that are no column."""
    row, claim = line.row, line.row.claim
    machine, ratio = line.speed[0] if line.speed else (None, None)
    values = {**dict.fromkeys(COLUMNS), "seeds": 0, **row.choices, **line.values, "paper": row.paper, "row": row.id,
              "control": line.control, "section": line.section, "setting": line.setting.replace("`", "") or None,
              "latency_ratio": ratio, "latency_at": machine, "verdict": line.verdict or None, "command": row.command}
    if claim is not None:
        drops = {f"claim_{what}_drop": next((drop for end in ENDS if (drop := getattr(claim, f"{what}_drop{end}"))
                                             is not None), None) for what in ("params", "macs")}
        values |= {"claim_metric": claim.metric, "claim_delta": claim.step, "reconstruction": claim.reconstruction,
                   **{f"claim_{name}": getattr(claim, name) for name in ("baseline", "pruned", "source", "provenance")},
                   **drops, "claim_bounds": "; ".join(text for name, text in BOUNDS.items()
                                                      if getattr(claim, name) is not None) or None}
    return values


def summary(root: Path, errors: list[str] | None = None) -> list[dict[str, Any]]:
    """A dict per line, COLUMNS alone. What is wrong goes to `errors`, or to stderr."""
    told: list[str] = [] if errors is None else errors
    lines = collect(root, told).lines
    if errors is None:
        ended(told)
    return [{**{name: line.values[name] for name in COLUMNS}, "commits": " ".join(line["commits"] or []) or None}
            for line in lines]
