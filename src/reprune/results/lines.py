"""What has run, a dict per line: the records queried with DuckDB (records.py), joined with the rows and their claims.

    summary(root)       -> the content of results/results.csv; a row that has not run has a line of its own
    collect(root)       -> the same as objects, for the pages

A line holds the runs of one row that differ in nothing but the seed: config, epochs and, where a record has it, the
fingerprint of the code (`code`) are the same. Records without a fingerprint only know the commit of the whole checkout:
they share a line, and the line lists its commits. A record that is not as it must be becomes one line in `errors`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from reprune.results import rows as results
from reprune.results.compose_rows import compose_rows
from reprune.results.records import LINES, NORMS, SAME, SPEED, query, read_runs
from reprune.results.rows import GROUPS, STAGES, Row, departures, flat
from reprune.results.verdict import claimed_delta, verdict
from reprune.runs.fingerprint import PARTS


@dataclass
class Line:
    """The runs of a row that differ in nothing but the seed; or a row that has not run (`runs` empty)."""
    row: Row
    section: str = "not run"    # full, short (fewer epochs or images than the paper), changed (not the row's file), own
    setting: str = ""           # what sets it apart from the row's file and from the row's other lines
    stats: dict[str, Any] = field(default_factory=dict)     # see LINES
    config: dict[str, Any] = field(default_factory=dict)    # flat, of its first run
    runs: list[dict] = field(default_factory=list)          # in the order of the seeds
    speed: list[tuple[str, float]] = field(default_factory=list)    # (machine, ratio), most runs first
    verdict: str = ""

    @property
    def series(self) -> str:
        """Its method; widths that were trained from fresh weights stand apart."""
        method = self.stats.get("method") or self.row.choices.get("method", "unknown")
        config = self.config if self.runs else self.row.config
        return method + " from scratch" * bool(config.get("recipe.recover.from_scratch"))

    @property
    def given(self) -> bool:
        return self.stats["source"] != "trained here"


def section(row: Row, run: dict, config: dict) -> str:
    """By the row's file alone; `strays` looks closer at what is full by it."""
    if row.claim is None:
        return "own"
    if not run["paper_known"] or run["images"] is not None:
        return "short"
    ran, last = {stage: run[f"epochs.{stage}"] for stage in STAGES}, run["last_epochs"]
    ran["recover"] = min(ran["recover"], ran["recover"] if last is None else last)      # without those between rounds
    trained = [stage for stage in STAGES if stage != "baseline" or run["source"] == "trained here"]
    gap = [ran[stage] - run[f"paper.{stage}"] for stage in trained]
    if min(gap) < 0:
        return "short"
    return "changed" if max(gap) > 0 or departures(row, run, config) else "full"


def code(line: Line) -> dict[str, str]:
    """The versions of its method, data and model, as far as its records know them."""
    known = json.loads(line.stats["code"] or "{}")
    return {f"code.{part}": known.get(part, "unknown") for part in PARTS}


def strays(line: Line, composed: dict) -> set[str]:
    """Names whose value is not what `experiments=ROW` alone gives: set on the command line. Weights may be given, and
    then the baseline is not trained and images are normalised as the weights want it. Options that are newer than the
    record are no departure."""
    free = ("model.weights", *(["dataset.normalize", "recipe.baseline"] if line.given else []))
    return {name for name, value in line.config.items() if composed.get(name, ...) != value
            and not any(name == one or name.startswith(f"{one}.") for one in free)}


def lines_of(row: Row, found: list[Line], composed: dict | None) -> list[Line]:
    """What sets the lines of a row apart, in a fixed order; composed: the config its file stands for, flat."""
    configs = [{**line.config, **{g: line.stats[g] for g in GROUPS}, **code(line)} for line in found]
    values = defaultdict(list)                                    # of each name, in all lines
    for config in configs:
        for name, value in config.items():
            values[name].append(repr(value))
    apart = {name for name, said in values.items() if len(said) < len(configs) or len(set(said)) > 1}
    for line, config in zip(found, configs, strict=True):
        line.section, other = section(row, line.stats, line.config), set()
        if line.section == "full" and composed and (other := strays(line, composed)):
            line.section = "changed"
        names = apart | other | departures(row, line.stats, line.config)
        named = [n for n in sorted(names) if n in GROUPS or n.split(".")[0] not in names]   # method=random: all of it
        line.setting = ", ".join(f"`{n}={json.dumps(config.get(n))}`".replace('"', "") for n in named)
        line.verdict = verdict(row.claim, line.section, line.stats)
    return sorted(found, key=lambda line: (line.setting, line.runs[0]["key"]))


@dataclass
class Collected:
    """Everything the tables are made of."""
    rows: list[Row]
    about: dict[str, dict]
    lines: dict[str, list[Line]]        # row id -> its lines; one without runs if it has not run
    norms: dict[str, dict]              # key -> see NORMS


def collect(root: Path, errors: list[str], every: bool = False) -> Collected:
    """every: compose all rows, to name those that do not; else those that runs of the whole recipe are held against."""
    rows, about = results.read_rows(root, errors)
    found, norms = defaultdict(list), {}
    by_id = {row.id: row for row in rows}
    with closing(duckdb.connect()) as con:
        read_runs(con, root, errors)
        known = results.row_ids(root)
        for key, experiment in con.execute("SELECT key, experiment FROM runs ORDER BY key").fetchall():
            if experiment not in known:
                errors.append(f"results/runs/{key}.json: experiment {experiment!r} has no file "
                              f"experiments/{experiment}.yaml")
        runs = {run["key"]: run for run in query(con, 'SELECT key, experiment, seed, method, model, dataset, recipe, '
                                                      'base, source, top1, commit, torch FROM runs')}
        configs = {name: flat(json.loads(text))
                   for name, text in con.execute("SELECT config_id, config FROM configs").fetchall()}
        norms = {run["key"]: run for run in query(con, NORMS)}
        speed = defaultdict(list)
        for entry in query(con, SPEED):
            speed[tuple(entry[name] for name in SAME)].append((entry["machine"], entry["ratio"]))
        for stats in query(con, LINES):
            if row := by_id.get(stats["experiment"]):
                found[row.id].append(Line(
                    row, stats=stats, config=configs[stats["config_id"]],
                    runs=[runs[key] for key in stats["keys"]], speed=speed[tuple(stats[name] for name in SAME)]))
    judged = {line.row.id for some in found.values() for line in some
              if section(line.row, line.stats, line.config) == "full"}
    composed = compose_rows(root, [row for row in rows if every or row.id in judged], errors)
    lines = {row.id: lines_of(row, found[row.id], composed.get(row.id))
             or [Line(row, verdict=verdict(row.claim, "not run", {}))] for row in rows}
    return Collected(rows, about, lines, norms)


def entry(line: Line) -> dict[str, Any]:
    """One line of results.csv: see COLUMNS."""
    row, claim, ours = line.row, line.row.claim or {}, line.stats
    known = bool(ours and ours["paper_known"])
    machine, ratio = line.speed[0] if line.speed else (None, None)
    values = {
        **ours, "paper": row.id.split("/")[0], "row": row.id, "section": line.section,
        "setting": line.setting.replace("`", "") or None, **{g: (ours or row.choices).get(g) for g in GROUPS},
        "seeds": ours.get("seeds", 0), "keys": " ".join(ours.get("keys", [])) or None,
        "commits": " ".join(ours.get("commits", [])) or None, "baseline_source": ours.get("source"),
        "top1_before_recovery": ours.get("before"), "top1_best": ours.get("best"),
        "latency_ratio": ratio, "latency_at": machine,
        **{f"epochs_{stage}": ours.get(f"epochs.{stage}") for stage in STAGES},
        **{f"paper_epochs_{stage}": ours.get(f"paper.{stage}") if known else None for stage in STAGES},
        "claim_metric": claim.get("metric", "top1") if claim else None, "claim_delta": claimed_delta(claim),
        **{f"claim_{name}": claim.get(name) for name in ("baseline", "pruned", "source", "provenance")},
        **{f"claim_{what}_drop": next((claim[n] for end in results.ENDS if (n := f"{what}_drop{end}") in claim), None)
           for what in ("params", "macs")},
        "claim_bounds": "; ".join(text for name, text in BOUNDS.items() if name in claim) or None,
        "reconstruction": claim.get("reconstruction"), "verdict": line.verdict or None, "command": row.command}
    return {name: values.get(name) for name in COLUMNS}


BOUNDS = {"better_than_baseline": "delta > 0", "no_accuracy_loss": "delta >= 0", "params_drop_min": "params_drop_min",
          "params_drop_max": "params_drop_max", "macs_drop_min": "macs_drop_min", "macs_drop_max": "macs_drop_max"}
COLUMNS = [
    "paper", "row", "section", "setting", "method", "model", "dataset", "recipe", "seeds", "keys", "commits", "code",
    "baseline_source", "baseline_top1", "pruned_top1", "pruned_top1_std", "delta", "delta_std",
    "top1_before_recovery", "top1_best", "params_baseline", "params_pruned", "macs_baseline", "macs_pruned",
    "params_drop", "macs_drop", "latency_ratio", "latency_at",
    *(f"epochs_{stage}" for stage in STAGES), *(f"paper_epochs_{stage}" for stage in STAGES), "seconds",
    "claim_metric", "claim_baseline", "claim_pruned", "claim_delta", "claim_params_drop", "claim_macs_drop",
    "claim_bounds", "claim_source", "claim_provenance", "reconstruction", "verdict", "command"]


def summary(root: Path, errors: list[str] | None = None) -> list[dict[str, Any]]:
    """A dict per line of the tables, None where unknown. What is wrong goes to `errors`, or to stderr."""
    told: list[str] = [] if errors is None else errors
    collected = collect(root, told)
    if errors is None:
        for error in told:
            print(f"error: {error}", file=sys.stderr)
    return [entry(line) for row in collected.rows for line in collected.lines[row.id]]
