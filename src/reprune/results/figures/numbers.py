"""What figures show: the tables' lines (lines.py) and the records behind them, as plain data for drawing.py."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, mode
from textwrap import shorten
from typing import Any

from reprune.results.lines import summary
from reprune.results.records import read_record
from reprune.results.rows import flat
from reprune.schema import STAGES, Record

ENTRIES = 12                # of one legend


@dataclass
class Line:
    """A line of the tables with the runs behind it."""
    of: dict[str, Any]          # see lines.COLUMNS
    runs: list[Record]
    config: dict[str, Any]      # flat, of the first run
    setting: str = ""           # what tells it from the row's other lines

    @property
    def series(self) -> str:
        control = self.of.get("control")
        scratch = control == "scratch" or self.config.get("recipe.recover.from_scratch")
        return (self.of["method"] or "unknown") + " from scratch" * bool(scratch) + " (control)" * bool(control)

    @property
    def given(self) -> bool:
        return self.of["baseline_source"] != "trained here"

    @property
    def epochs(self) -> dict[str, tuple[int, int | None]]:
        """Stage -> epochs run and epochs of the paper; without a baseline that was not trained."""
        return {stage: (self.of[f"epochs_{stage}"], self.of[f"paper_epochs_{stage}"]) for stage in STAGES
                if not (self.given and stage == "baseline")}

    @property
    def short(self) -> bool:
        """Also a row without a claim can have a recipe of a paper."""
        return self.of["section"] == "short" or any(ran < (paper or 0) for ran, paper in self.epochs.values())

    @property
    def claims(self) -> bool:
        """Does the paper print a point, accuracy and MACs?"""
        return (not self.of.get("control") and self.of["claim_metric"] == "top1" and self.of["claim_pruned"] is not None
                and self.of["claim_macs_drop"] is not None and "macs_drop" not in (self.of["claim_bounds"] or ""))

    @property
    def row(self) -> str:
        control = self.of.get("control")
        return self.of["row"].split("/", 1)[1] + f", {control} control" * bool(control)

    @property
    def title(self) -> str:
        return self.row + f" ({self.setting})" * bool(self.setting)

    def label(self, row: bool) -> str:
        """In a legend; `row`: named too."""
        epochs = [f"{stage} {ran}" + f" of {paper}" * (paper is not None and paper != ran)
                  for stage, (ran, paper) in self.epochs.items() if ran or paper]
        parts = [self.row * row, self.setting, ", ".join(epochs) + "; short" * self.short,
                 f"{self.of['seeds']} seeds" * (self.of["seeds"] > 1)]
        return f"{self.series}: " + "; ".join(part for part in parts if part)


def read_lines(root: Path, errors: list[str]) -> list[Line]:
    lines, alike = [], defaultdict(list)
    for entry in summary(root, errors):
        runs = [read_record(root / f"results/runs/{key}.json") for key in (entry["keys"] or "").split()]
        lines.append(Line(entry, runs, flat(runs[0].config) if runs else {}))
        alike[entry["row"], entry.get("control")].append(lines[-1])
    for several in alike.values():
        set_apart(several)
    return lines


def set_apart(lines: list[Line]) -> None:
    """Gives each line of a row, or of its control, the `setting` that tells it from the others, in a few words."""
    told = [re.split(r", (?=[\w.]+=)", line.of["setting"] or "") for line in lines]
    for line, every in zip(lines, told, strict=True):
        own = [one for one in every if len(lines) == 1 or not all(one in other for other in told)]
        short = [re.sub(r"^[\w.]+\.(\w+=)", r"\1", one) for one in own]     # weight=0.1 of method.penalties.hgsr.weight
        line.setting = shorten(", ".join(one if short.count(brief) > 1 else brief
                                         for one, brief in zip(own, short, strict=True)), 60, placeholder=" ...")
    settings = Counter(line.setting for line in lines)
    for line in lines:
        if settings[line.setting] > 1 and line.runs:
            line.setting = "; ".join(part for part in (line.setting, f"run {line.runs[0].key[:8]}") if part)


def accuracy(lines: list[Line]) -> dict | None:
    ours = [line for line in lines if line.runs]
    papers = [next(row) for _, row in groupby((line for line in lines if line.claims), lambda line: line.of["row"])]
    if not ours or len(ours) + len(papers) < 2:
        return None
    if many := len(set(named := labels(ours))) > ENTRIES:          # then those of a method share an entry
        named = [f"{line.series}: several settings" + ", short" * line.short for line in ours]
    points = [{"kept": 100 - line.of["macs_drop"], "top1": line.of["pruned_top1"], "std": line.of["pruned_top1_std"],
               "series": line.series, "ours": True, "short": line.short, "label": label}
              for line, label in zip(ours, named, strict=True)]
    points += [{"kept": 100 - line.of["claim_macs_drop"], "top1": line.of["claim_pruned"], "std": None,
                "series": line.series, "ours": False, "short": False,
                "label": f"{line.of['method']}: {line.of['paper']} as printed"} for line in papers]
    bases = {(line.of["baseline_top1"], "given weights" if line.given else "trained here", True) for line in ours}
    bases |= {(line.of["claim_baseline"], f"{line.of['paper']} as printed", False) for line in papers
              if line.of["claim_baseline"] is not None}
    return {"points": points, "joined": not many, "baselines": [
        {"top1": top1, "label": f"baseline {top1:.2f}, {whose}", "ours": mine}
        for top1, whose, mine in sorted(bases)]}


def labels(lines: list[Line]) -> list[str]:
    """Lines that differ in nothing but how much is removed share one."""
    rest = defaultdict(set)
    for line in lines:
        rest[line.label(row=False)].add(json.dumps({name: value for name, value in line.config.items()
                                                    if not name.startswith("method.allocation.")}, sort_keys=True))
    return [line.label(row=len(rest[line.label(row=False)]) > 1) for line in lines]


def widths(lines: list[Line]) -> dict | None:
    shown = []
    for line in lines:
        runs = [run.widths for run in line.runs if run.widths]
        if runs and all(run.keys() == runs[0].keys() for run in runs):
            after = [[run[layer][1] for run in runs] for layer in runs[0]]
            shown.append({"title": line.title, "series": line.series, "before": [w[0] for w in runs[0].values()],
                          "after": [*map(mean, after)], "low": [*map(min, after)], "high": [*map(max, after)]})
    return {"panels": shown} if shown else None


def norms(lines: list[Line]) -> dict | None:
    shown = []
    for line in lines:
        if every := [norm for run in line.runs for group in (run.group_norms or {}).values() for norm in group]:
            weights = {name.split(".")[2]: weight for name, weight in sorted(line.config.items())
                       if re.fullmatch(r"method\.penalties\.[^.]+\.weight", name) and isinstance(weight, int | float)}
            told = ", ".join(f"{name}, weight {weight:g}" for name, weight in weights.items())
            shown.append((sum(weights.values()), {
                "title": f"{line.row}: {told or 'no penalty'}", "series": line.series, "norms": every}))
    shown.sort(key=lambda panel: (panel[0], panel[1]["title"]))
    return {"panels": [panel for _, panel in shown]} if shown else None


def curves(lines: list[Line]) -> dict | None:
    shown, given = [], False
    for line in lines:
        for run in line.runs:
            stages: dict[str, dict] = defaultdict(lambda: defaultdict(list))
            for stage, means in run.curves.items():
                for name, values in means.items():
                    stages[stage.partition("-")[0]][name] += values       # recover-0, ..., recover: one after another
            if stages:
                shown.append({"label": line.title, "series": line.series, "stages": stages})
                given |= line.given
    return {"runs": shown, "given": given} if shown else None


def seconds(lines: list[Line]) -> dict | None:
    shown = []
    for line in lines:
        on = defaultdict(list)                                     # never a mean over different machines
        for run in line.runs:
            if run.seconds:
                on[f"{run.env.device}, {run.env.threads} thread" + "s" * (run.env.threads != 1)].append(run.seconds)
        for machine, runs in sorted(on.items()):
            stages = dict.fromkeys(stage for run in runs for stage in run if stage not in ("baseline", "measure"))
            shown.append((line.title, machine, {stage: mean(run.get(stage, 0.0) for run in runs) for stage in stages}))
    most = mode(machine for _, machine, _ in shown) if shown else None
    return {"bars": [{"label": title + f" on {machine}" * (machine != most), "stages": stages}
                     for title, machine, stages in shown], "unit": f"seconds ({most})"} if len(shown) > 1 else None


NUMBERS: dict[str, Callable[[list[Line]], dict | None]] = {
    "accuracy": accuracy, "widths": widths, "norms": norms, "curves": curves, "seconds": seconds}
