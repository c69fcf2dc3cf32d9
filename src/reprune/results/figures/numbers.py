"""What figures show: the tables' lines (summary.py) and the records behind them, as plain data for drawing.py."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from textwrap import shorten
from typing import Any

from reprune.results.lines import summary
from reprune.results.rows import STAGES, flat, number

ENTRIES = 12                # of one legend


def numbers(values: Any, least: float = -float("inf")) -> bool:
    return isinstance(values, list) and all(number(n) and least <= n and abs(n) < float("inf") for n in values)


FORM = {                    # what records may hold beside what tables need
    "widths": ("{layer: [filters before, after]}", lambda v: all(numbers(w, 1) and len(w) == 2 for w in v.values())),
    "group_norms": ("{group: norms}", lambda v: all(numbers(norms, 0) for norms in v.values())),
    "seconds": ("{stage: seconds}", lambda v: numbers(list(v.values()), 0)),
    "curves": ("{stage: {name: a number per epoch}}", lambda v: all(
        isinstance(means, dict) and all(map(numbers, means.values())) for means in v.values()))}


@dataclass
class Line:
    """A line of the tables with the runs behind it."""
    of: dict[str, Any]          # see summary.COLUMNS
    runs: list[dict]
    style: int = 0              # of its series: the same in every figure
    setting: str = ""           # what tells it from the row's other lines

    def config(self, *path: str) -> dict:
        """A mapping of the config; empty where there is none."""
        node = self.runs[0]["config"] if self.runs else {}
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        return node if isinstance(node, dict) else {}

    @property
    def series(self) -> str:
        scratch = self.config("recipe", "recover").get("from_scratch")
        return (self.of["method"] or "unknown") + ", from scratch" * bool(scratch)

    @property
    def short(self) -> bool:
        """Also a row without a claim can have a recipe of a paper."""
        return self.of["section"] == "short" or any(
            self.of[f"epochs_{stage}"] < (self.of[f"paper_epochs_{stage}"] or 0) for stage in self.trained)

    @property
    def trained(self) -> list[str]:
        given = self.of["baseline_source"] != "trained here"
        return [stage for stage in STAGES if not (given and stage == "baseline")]

    @property
    def claims(self) -> bool:
        """Does the paper print a point, accuracy and MACs?"""
        return (self.of["claim_metric"] == "top1" and self.of["claim_pruned"] is not None
                and self.of["claim_macs_drop"] is not None and "macs_drop" not in (self.of["claim_bounds"] or ""))

    def epochs(self) -> str:
        parts = []
        for stage in self.trained:
            ran, paper = self.of[f"epochs_{stage}"], self.of[f"paper_epochs_{stage}"]
            if ran or paper:
                parts.append(f"{stage} {ran}" + f" of {paper}" * (paper is not None and paper != ran))
        return ", ".join(parts) + ("; short" if self.short else "")

    def title(self) -> str:
        return self.of["row"].split("/", 1)[1] + (f" ({self.setting})" if self.setting else "")


def read_lines(root: Path, errors: list[str]) -> list[Line]:
    lines, of_row = [], defaultdict(list)
    for entry in summary(root, errors):
        files = [root / f"results/runs/{key}.json" for key in (entry["keys"] or "").split()]
        lines.append(Line(entry, [checked(json.loads(file.read_text("utf-8")), errors) for file in files]))
        of_row[entry["row"]].append(lines[-1])
    series = sorted({line.series for line in lines})
    for line in lines:
        line.style = series.index(line.series)
    for several in of_row.values():
        set_apart(several)
    return lines


def set_apart(lines: list[Line]) -> None:
    """Gives each line of a row the `setting` that tells it from the others, in a few words."""
    told = [re.split(r", (?=[\w.]+=)", line.of["setting"] or "") for line in lines]
    for line, every in zip(lines, told, strict=True):
        own = [one for one in every if len(lines) == 1 or not all(one in other for other in told)]
        short = [re.sub(r"^[\w.]+\.(\w+=)", r"\1", one) for one in own]     # weight=0.1 of method.penalties.hgsr.weight
        line.setting = shorten(", ".join(one if short.count(brief) > 1 else brief
                                         for one, brief in zip(own, short, strict=True)), 60, placeholder=" ...")
    settings = Counter(line.setting for line in lines)
    for line in lines:
        if settings[line.setting] > 1 and line.runs:
            line.setting = "; ".join(part for part in (line.setting, f"run {line.runs[0]['key'][:8]}") if part)


def checked(record: dict, errors: list[str]) -> dict:
    """Without the fields that cannot be drawn; each of them becomes a line in `errors`."""
    for name, (form, fits) in FORM.items():
        value = record.get(name)
        if value is not None and not (isinstance(value, dict) and fits(value)):
            errors.append(f"results/runs/{record['key']}.json: {name} must be {form}, not {value!r:.60}; not drawn")
            record[name] = None
    return record


def accuracy(lines: list[Line]) -> dict | None:
    ours, papers = [line for line in lines if line.runs], [line for line in lines if line.claims]
    if not ours or len(ours) + len(papers) < 2:
        return None
    named, baselines = labels(ours), set()
    if many := len(set(named)) > ENTRIES:                          # then those of a method share an entry
        named = [f"{line.series}: several settings" + ", short" * line.short for line in ours]
    points = [{"kept": 100 - line.of["macs_drop"], "top1": line.of["pruned_top1"], "std": line.of["pruned_top1_std"],
               "style": line.style, "ours": True, "short": line.short, "label": label}
              for line, label in zip(ours, named, strict=True)]
    for line in ours:
        source = "trained here" if line.of["baseline_source"] == "trained here" else "given weights"
        baselines.add((line.of["baseline_top1"], f"baseline {line.of['baseline_top1']:.2f}, {source}", True))
    for line in {line.of["row"]: line for line in papers}.values():
        points.append({"kept": 100 - line.of["claim_macs_drop"], "top1": line.of["claim_pruned"], "std": None,
                       "style": line.style, "ours": False, "short": False,
                       "label": f"{line.of['method']}: {line.of['paper']} as printed"})
        if (base := line.of["claim_baseline"]) is not None:
            baselines.add((base, f"baseline {base:.2f}, {line.of['paper']} as printed", False))
    return {"points": points, "joined": not many, "baselines": [dict(zip(("top1", "label", "ours"), b, strict=True))
                                                                for b in sorted(baselines)]}


def labels(lines: list[Line]) -> list[str]:
    """Lines that differ in nothing but how much is removed share one."""
    def label(line: Line, row: bool) -> str:
        seeds = f"{line.of['seeds']} seeds" * (line.of["seeds"] > 1)
        name = line.of["row"].split("/")[1] if row else ""
        return f"{line.series}: " + "; ".join(part for part in (name, line.setting, line.epochs(), seeds) if part)

    rest = defaultdict(set)
    for line in lines:
        rest[label(line, False)].add(json.dumps({name: value for name, value in flat(line.config()).items()
                                                 if not name.startswith("method.allocation.")}, sort_keys=True))
    return [label(line, len(rest[label(line, False)]) > 1) for line in lines]


def widths(lines: list[Line]) -> dict | None:
    shown = []
    for line in lines:
        runs = [run["widths"] for run in line.runs if run.get("widths")]
        if runs and all(run.keys() == runs[0].keys() for run in runs):
            after = [[run[layer][1] for run in runs] for layer in runs[0]]
            shown.append({"title": line.title(), "style": line.style, "before": [w[0] for w in runs[0].values()],
                          "after": [mean(w) for w in after], "low": [min(w) for w in after],
                          "high": [max(w) for w in after]})
    return {"panels": shown} if shown else None


def norms(lines: list[Line]) -> dict | None:
    shown = []
    for line in lines:
        every = [norm for run in line.runs for group in (run.get("group_norms") or {}).values() for norm in group]
        if every:
            weights = {name: weight for name in line.config("method", "penalties")
                       if number(weight := line.config("method", "penalties", name).get("weight"))}
            told = ", ".join(f"{name}, weight {weight:g}" for name, weight in sorted(weights.items()))
            shown.append((sum(weights.values()), {
                "title": f"{line.of['row'].split('/', 1)[1]}: {told or 'no penalty'}",
                "style": line.style, "norms": every}))
    return {"panels": [panel for _, panel in sorted(shown, key=lambda s: (s[0], s[1]["title"]))]} if shown else None


def curves(lines: list[Line]) -> dict | None:
    shown = []
    for line in lines:
        for run in line.runs:
            stages: dict[str, dict] = {}
            for stage, means in (run.get("curves") or {}).items():
                joined = stages.setdefault("recover" if stage.startswith("recover") else stage, {})
                for name, values in means.items():
                    joined[name] = joined.get(name, []) + values    # recover-0, ..., recover: one after another
            if any(stages.values()):
                shown.append({"label": line.title(), "style": line.style, "stages": stages})
    return {"runs": shown} if shown else None


def seconds(lines: list[Line]) -> dict | None:
    shown = []
    for line in lines:
        on = defaultdict(list)                                     # never a mean over different machines
        for run in line.runs:
            if run.get("seconds"):
                env = run["env"]
                on[f"{env.get('device')}, {env.get('threads')} threads".replace("1 threads", "1 thread")].append(
                    run["seconds"])
        for machine, runs in sorted(on.items()):
            stages = {stage: mean(run.get(stage, 0.0) for run in runs) for stage in dict.fromkeys(
                stage for run in runs for stage in run if stage not in ("baseline", "measure"))}
            shown.append((machine, {"label": line.title(), "stages": stages}))
    if len(shown) < 2:
        return None
    most = Counter(machine for machine, _ in shown).most_common(1)[0][0]
    return {"bars": [bar if machine == most else bar | {"label": f"{bar['label']} on {machine}"}
                     for machine, bar in shown],
            "unit": f"seconds ({most})"}


NUMBERS: dict[str, Callable[[list[Line]], dict | None]] = {
    "accuracy": accuracy, "widths": widths, "norms": norms, "curves": curves, "seconds": seconds}
