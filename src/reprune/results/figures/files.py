"""Figures: results/figures/*.svg from the tables' lines (lines.py) and the records behind them.

A figure carries a digest of the numbers it was drawn from, one of the drawing, and the keys of its runs. So the check
needs no second drawing: another version of matplotlib may set a letter elsewhere, the numbers stay the same.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reprune.files import write_text
from reprune.results.figures.numbers import NUMBERS, claims, read_lines
from reprune.results.lines import Line

CAPTIONS = {                # kind -> caption; in the order of a page
    "accuracy": "Top-1 on the test set against the MACs kept: {what}. Filled: ours, mean and sample standard deviation "
                "over the seeds. Hollow: as the papers print it. Pale with a grey edge: fewer epochs or images than "
                "the paper's. Dashed: our baseline; dotted: a paper's. The axis is logarithmic in the error.",
    "budgets": "Methods at equal budgets: {what}. Top-1 on the test set against the MACs kept, mean and sample "
               "standard deviation over the seeds; a panel for each way of mending what is cut. The axis is "
               "logarithmic in the error.",
    "widths": "Filters per layer: {what}. Line: before; bars: after pruning, mean over the seeds (strokes: least and "
              "most, where seeds differ).",
    "norms": "Norms of the filters' groups after sparse training, before anything is removed: {what}. All seeds of a "
             "line together; weight 0 is plain training.",
    "curves": "Training curves: {what}. Lines: mean over the seeds; bands: their range. Top-1 on held-out images, and "
              "on the training images (dotted; a stroke where there was one epoch). Black: the baseline, which rows "
              "share. Every stage has its own scale.",
    "seconds": "What a method costs, mean over the seeds: {what}. Wall clock, of the runs during which no other "
               "recorded run was under way; what else the machine did is not known. Without the baseline, which runs "
               "share, and without measuring."}
SEEN = " Weights that were given may have been trained on the held-out images too."
PANELS, PANELLED = 12, ("widths", "norms", "curves", "seconds")         # of one figure: a panel for each line
SEAL = re.compile(r"(?<=>numbers )(\w{16}) drawing (\w{16})(?=<)")


@dataclass
class Figure:
    name: str
    kind: str
    what: str                   # dataset and network
    pages: list[str]            # that it belongs on: papers
    keys: list[str]             # of the runs that are drawn
    data: dict[str, Any]        # all that is drawn

    @property
    def caption(self) -> str:
        return CAPTIONS[self.kind].format(what=self.what) + SEEN * self.data.get("given", False)

    @property
    def numbers(self) -> str:
        return digest(json.dumps([self.kind, self.caption, self.pages, self.keys, self.data], sort_keys=True))

    def svg(self) -> str:
        from reprune.results.figures import drawing  # matplotlib: only where something is drawn
        return sealed(drawing.svg(self.kind, self.data, {
            "Title": f"{self.kind}: {self.what}", "Description": self.caption, "Keywords": self.pages,
            "Source": " ".join(self.keys), "Creator": "python -m reprune figures",
            "Identifier": f"numbers {self.numbers} drawing {'0' * 16}"}))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(text: str) -> str:
    """With the digest of all of the figure but this very digest."""
    drawn = digest(SEAL.sub(rf"\1 drawing {'0' * 16}", text, count=1))
    return SEAL.sub(rf"\1 drawing {drawn}", text, count=1)


# ---------------------------------------------------------------- which figures

def build(root: Path, errors: list[str]) -> Iterator[Figure]:
    """All that have something to show. What is wrong with a record becomes a line in `errors`."""
    lines = read_lines(root, errors)
    for kind, numbers in NUMBERS.items():
        every = kind == "accuracy"                                # of all papers and any size; else of one paper
        groups = defaultdict(list)
        for line in lines:
            names = tuple(line[name] for name in ("paper", "dataset", "model")[every:])
            if all(names) and line["compare"] == (kind == "budgets") and (line.runs or (every and claims(line))):
                groups[names].append(line)
        for names, group in sorted(groups.items()):
            for number, part in enumerate(parts(group, PANELS if kind in PANELLED else len(group)), 1):
                if data := numbers(part):
                    what = f"{names[-1]} on {names[-2]}" + f", {names[0]}" * (not every)
                    yield Figure(
                        "-".join([kind, *(quote(name, safe="") for name in names)]) + f"-{number}" * (number > 1),
                        kind, what + f" ({number})" * (number > 1), sorted({line.row.paper for line in part}),
                        sorted({run.record.key for line in part for run in line.runs}), data)


def parts(lines: list[Line], size: int) -> list[list[Line]]:
    """Up to `size` lines each; those of a row, controls too, stand together as far as they fit."""
    found: list[list[Line]] = [[]]
    for _, row in groupby(lines, key=lambda line: line.row.id):
        own = list(row)
        if found[-1] and len(found[-1]) + len(own) > size:
            found.append([])
        found[-1] += own[:size]
        found += [own[at:at + size] for at in range(size, len(own), size)]
    return found


def told(file: Path) -> dict[str, Any] | None:
    """What a figure says of itself; None: not one of ours."""
    text = file.read_text("utf-8", errors="replace")
    if (seal := SEAL.search(text)) is None:
        return None
    caption, *pages = map(html.unescape, re.findall("<(?:dc:description|rdf:li)>(.*?)</", text) or [""])
    return {"pages": pages, "caption": caption, "numbers": seal[1], "whole": sealed(text) == text}


def for_page(root: Path, paper: str) -> list[tuple[str, str]]:
    """The figures that lie there for a page: (path from results/, caption). Reads no record."""
    found = [(list(CAPTIONS).index(kind), file.name, about["caption"]) for file, about in _drawn(root).items()
             if (kind := file.name.split("-")[0]) in CAPTIONS and about["whole"] and paper in about["pages"]]
    return [(f"figures/{quote(name)}", caption) for _, name, caption in sorted(found)]


def _drawn(root: Path) -> dict[Path, dict[str, Any]]:
    return {file: about for file in root.glob("results/figures/*.svg") if (about := told(file))}


def write(root: Path, check: bool) -> list[str]:
    """Writes what has something to show, removes what no longer has. -> what is wrong; check: nothing is written."""
    errors: list[str] = []
    figures = {root / f"results/figures/{figure.name}.svg": figure for figure in build(root, errors)}
    drawn = _drawn(root)
    for file in sorted({*drawn, *figures}):
        figure, about = figures.get(file), drawn.get(file)
        if check:
            if wrong := out_of_date(figure, about):
                errors.append(f"results/figures/{file.name} {wrong}: run make figures")
        elif figure:
            write_text(file, figure.svg())
        else:
            file.unlink()
    return errors


def out_of_date(figure: Figure | None, about: dict[str, Any] | None) -> str:
    if figure is None or about is None:
        return "is missing" if figure else "shows what no record holds"
    if not about["whole"]:
        return "was changed after it was drawn"
    return "was drawn from other numbers than the records hold" * (about["numbers"] != figure.numbers)
