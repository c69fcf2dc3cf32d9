"""What figures show: the tables' lines (lines.py) and the records behind them, as plain data for drawing.py."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import datetime
from itertools import groupby
from pathlib import Path
from statistics import mean, mode
from textwrap import shorten

from reprune.results.comparison import panels
from reprune.results.lines import Line, collect
from reprune.schema import STAGES, Record

ENTRIES = 12                # of one legend


def read_lines(root: Path, errors: list[str]) -> list[Line]:
    """Each with the `setting` that tells it from the row's other lines in a few words."""
    found, alike = collect(root, errors, whole=True), defaultdict(list)
    lines = found.lines
    for line in lines:
        alike[line.row.id, line.control].append(line)
    for several in alike.values():
        set_apart(several)
    single = alone([of for line in lines for of in records(line)])
    for line in lines:
        line.values |= {"alone": single, "compare": found.about[line.row.paper].compare}
    return lines


def alone(every: list[Record]) -> set[str]:
    """Keys of the runs during which no other recorded run was under way on such a machine."""
    spans, shared = defaultdict(list), set()
    for of in every:
        try:
            start = datetime.fromisoformat(of.started).timestamp()
        except ValueError:                                         # a record holds any text: nothing is known
            shared.add(of.key)
            continue
        spans[of.env.device, of.env.device_name].append((start, start + sum((of.seconds or {}).values()), of.key))
    for machine in spans.values():
        last, under_way = -math.inf, ""                            # of those before, the one that ends last
        for start, end, key in sorted(machine):
            if start < last:
                shared |= {key, under_way}
            last, under_way = max((last, under_way), (end, key))
    return {of.key for of in every} - shared


def records(line: Line) -> list[Record]:
    return [run.record for run in line.runs]


def series(line: Line) -> str:
    return line.series + " (control)" * bool(line.control)


def epochs(line: Line) -> dict[str, tuple[int, int | None]]:
    """Stage -> epochs run and epochs of the paper; without a baseline that was not trained."""
    return {stage: (line[f"epochs_{stage}"], line[f"paper_epochs_{stage}"]) for stage in STAGES
            if not (line.given and stage == "baseline")}


def is_short(line: Line) -> bool:
    """Also a row without a claim can have a recipe of a paper."""
    return line.section == "short" or any(ran < (paper or 0) for ran, paper in epochs(line).values())


def claims(line: Line) -> bool:
    """Does the paper print a point, accuracy and MACs?"""
    claim = line.row.claim
    return (not line.control and claim is not None and claim.metric == "top1" and claim.pruned is not None
            and claim.macs_drop is not None)


def row(line: Line) -> str:
    return line.row.id.split("/", 1)[1] + f", {line.control} control" * bool(line.control)


def title(line: Line) -> str:
    return row(line) + f" ({line.setting})" * bool(line.setting)


def label(line: Line, named: bool) -> str:
    """In a legend; `named`: with its row."""
    told = [f"{stage} {ran}" + f" of {paper}" * (paper is not None and paper != ran)
            for stage, (ran, paper) in epochs(line).items() if ran or paper]
    parts = [row(line) * named, line.setting, ", ".join(told) + "; short" * is_short(line),
             f"{line['seeds']} seeds" * (line["seeds"] > 1)]
    return f"{series(line)}: " + "; ".join(part for part in parts if part)


def set_apart(lines: list[Line]) -> None:
    told = [re.split(r", (?=[\w.]+=)", line.setting.replace("`", "")) for line in lines]
    for line, every in zip(lines, told, strict=True):
        own = [one for one in every if len(lines) == 1 or not all(one in other for other in told)]
        short = [re.sub(r"^[\w.]+\.(\w+=)", r"\1", one) for one in own]     # weight=0.1 of method.penalties.hgsr.weight
        line.setting = shorten(", ".join(one if short.count(brief) > 1 else brief
                                         for one, brief in zip(own, short, strict=True)), 60, placeholder=" ...")
    settings = Counter(line.setting for line in lines)
    for line in lines:
        if settings[line.setting] > 1 and line.runs:
            line.setting = "; ".join(part for part in (line.setting, f"run {line.runs[0].record.key[:8]}") if part)


def accuracy(lines: list[Line]) -> dict | None:
    ours = [line for line in lines if line.runs and line["macs_drop"]]        # masked or coded nets keep all MACs
    papers = [next(row) for _, row in groupby((line for line in lines if claims(line)), lambda line: line.row.id)]
    if not ours or len(ours) + len(papers) < 2:
        return None
    if many := len(set(named := labels(ours))) > ENTRIES:          # then those of a method share an entry
        named = [f"{series(line)}: several settings" + ", short" * is_short(line) for line in ours]
    points = [{"kept": 100 - line["macs_drop"], "top1": line["pruned_top1"], "std": line["pruned_top1_std"],
               "series": series(line), "ours": True, "short": is_short(line), "label": label}
              for line, label in zip(ours, named, strict=True)]
    points += [{"kept": 100 - line["claim_macs_drop"], "top1": line["claim_pruned"], "std": None,
                "series": series(line), "ours": False, "short": False,
                "label": f"{line.series}: {line.row.paper} as printed"} for line in papers]
    bases = {(line["baseline_top1"], "given weights" if line.given else "trained here", True) for line in ours}
    bases |= {(line["claim_baseline"], f"{line.row.paper} as printed", False) for line in papers
              if line["claim_baseline"] is not None}
    shared = sum(not mine for _, _, mine in bases) > 3             # then the printed ones share an entry
    return {"points": points, "joined": not many, "baselines": [
        {"top1": top1, "label": "baselines as printed" if shared and not mine else f"baseline {top1:.2f}, {whose}",
         "ours": mine} for top1, whose, mine in sorted(bases)]}


def labels(lines: list[Line]) -> list[str]:
    """Lines that differ in nothing but how much is removed share one."""
    rest = defaultdict(set)
    for line in lines:
        rest[label(line, named=False)].add(json.dumps({name: value for name, value in line.config.items()
                                                    if not name.startswith("method.allocation.")}, sort_keys=True))
    return [label(line, named=len(rest[label(line, named=False)]) > 1) for line in lines]


def widths(lines: list[Line]) -> dict | None:
    shown = []
    for line in lines:
        runs = [run.widths for run in records(line) if run.widths]
        if runs and all(run.keys() == runs[0].keys() for run in runs):
            after = [[run[layer][1] for run in runs] for layer in runs[0]]
            shown.append({"title": title(line), "series": series(line), "before": [w[0] for w in runs[0].values()],
                          "after": [*map(mean, after)], "low": [*map(min, after)], "high": [*map(max, after)]})
    return {"panels": shown} if shown else None


def norms(lines: list[Line]) -> dict | None:
    shown = []
    for line in lines:
        if every := [norm for run in records(line) for group in (run.group_norms or {}).values() for norm in group]:
            weights = {name.split(".")[2]: weight for name, weight in sorted(line.config.items())
                       if re.fullmatch(r"method\.penalties\.[^.]+\.weight", name) and isinstance(weight, int | float)}
            told = ", ".join(f"{name}, weight {weight:g}" for name, weight in weights.items())
            shown.append((sum(weights.values()), {
                "title": f"{row(line)}: {told or 'no penalty'}", "series": series(line), "norms": every}))
    shown.sort(key=lambda panel: (panel[0], panel[1]["title"]))
    return {"panels": [panel for _, panel in shown]} if shown else None


def curves(lines: list[Line]) -> dict | None:
    shown, given = [], False
    for line in lines:
        for run in records(line):
            stages: dict[str, dict] = defaultdict(lambda: defaultdict(list))
            for stage, means in run.curves.items():
                for name, values in means.items():
                    stages[stage.partition("-")[0]][name] += values       # recover-0, ..., recover: one after another
            if stages:
                shown.append({"label": title(line), "series": series(line), "stages": stages})
                given |= line.given
    return {"runs": shown, "given": given} if shown else None


def seconds(lines: list[Line]) -> dict | None:
    shown = []
    for line in lines:
        on = defaultdict(list)                                     # never a mean over different machines
        for run in records(line):
            if run.seconds and run.key in line["alone"]:
                on[f"{run.env.device}, {run.env.threads} thread" + "s" * (run.env.threads != 1)].append(run.seconds)
        for machine, runs in sorted(on.items()):
            stages = dict.fromkeys(stage for run in runs for stage in run if stage not in ("baseline", "measure"))
            if stages:                                             # nets that are only stored have none
                shown.append((title(line), machine, {s: mean(run.get(s, 0.0) for run in runs) for s in stages}))
    most = mode(machine for _, machine, _ in shown) if shown else None
    return {"bars": [{"label": title + f" on {machine}" * (machine != most), "stages": stages}
                     for title, machine, stages in shown], "unit": f"seconds ({most})"} if len(shown) > 1 else None


def budgets(lines: list[Line]) -> dict | None:
    shown = panels(lines)
    return {"panels": shown} if shown else None


NUMBERS: dict[str, Callable[[list[Line]], dict | None]] = {
    "accuracy": accuracy, "budgets": budgets, "widths": widths, "norms": norms, "curves": curves, "seconds": seconds}
