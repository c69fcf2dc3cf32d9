"""Figures: results/figures/*.svg from the tables' lines (summary.py) and the records behind them.

    python -m reprune figures            writes what has something to show, removes what no longer has
    python -m reprune figures --check    writes nothing; names the figures that were not drawn from today's numbers

A figure carries a digest of the numbers it was drawn from, one of the drawing, and the keys of its runs. So the check
needs no second drawing: another version of matplotlib may set a letter elsewhere, the numbers stay the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reprune.files import write_text

CAPTIONS = {                # kind -> caption; in the order of a page
    "accuracy": "Top-1 on the test set against the MACs kept: {what}. Filled: ours, mean and sample standard deviation "
                "over the seeds. Hollow: as the papers print it. Pale with a grey edge: fewer epochs or images than "
                "the paper's. Dashed: our baseline; dotted: a paper's. The axis is logarithmic in the error.",
    "widths": "Filters per layer: {what}. Line: before; bars: after pruning, mean over the seeds (strokes: least and "
              "most, where seeds differ).",
    "norms": "Norms of the filters' groups after sparse training, before anything is removed: {what}. All seeds of a "
             "line together; weight 0 is plain training.",
    "curves": "Training curves: {what}. Lines: mean over the seeds; bands: their range. Top-1 on held-out images, and "
              "on the training images (dotted; a stroke where there was one epoch). Black: the baseline, which rows "
              "share. Every stage has its own scale.",
    "seconds": "What a method costs, mean over the seeds: {what}. Without the baseline, which runs share, and without "
               "measuring."}
PANELS = 12                 # of one figure


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
        return CAPTIONS[self.kind].format(what=self.what)

    @property
    def numbers(self) -> str:
        content = json.dumps([self.kind, self.caption, self.pages, self.keys, self.data], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def svg(self) -> str:
        from reprune.results.figures import drawing  # matplotlib: only where something is drawn
        text = drawing.svg(self.kind, self.data, {
            "Title": f"{self.kind}: {self.what}", "Description": self.caption, "Keywords": self.pages,
            "Source": " ".join(self.keys), "Creator": "python -m reprune figures",
            "Identifier": f"numbers {self.numbers} drawing {'0' * 16}"})
        return re.sub(r"(numbers \w{16} drawing )0{16}", rf"\g<1>{_seal(text)}", text, count=1)


def _seal(text: str) -> str:
    """Of all of a figure but the seal."""
    plain = re.sub(r"(numbers \w{16} drawing )\w{16}", rf"\g<1>{'0' * 16}", text, count=1)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- which figures

def build(root: Path, errors: list[str]) -> Iterator[Figure]:
    """All that have something to show. What is wrong with a record becomes a line in `errors`."""
    from reprune.results.figures.numbers import NUMBERS, read_lines  # with DuckDB and OmegaConf; for_page needs neither

    lines = read_lines(root, errors)
    for kind, numbers in NUMBERS.items():
        apart = ("dataset", "model") if kind == "accuracy" else ("paper", "dataset", "model")    # of all papers, or one
        groups = defaultdict(list)
        for line in lines:
            if all(line.of[name] for name in apart):
                groups[tuple(line.of[name] for name in apart)].append(line)
        for names, group in sorted(groups.items()):
            shown = [line for line in group if line.runs or (kind == "accuracy" and line.claims)]
            size = len(shown) if kind == "accuracy" else PANELS
            for number, part in enumerate((shown[at:at + size] for at in range(0, len(shown), size or 1)), 1):
                if data := numbers(part):
                    name = "-".join([kind, *(quote(name, safe="") for name in names)])
                    what = f"{names[-1]} on {names[-2]}" + f", {names[0]}" * (len(names) == 3)
                    yield Figure(
                        name + f"-{number}" * (number > 1), kind, what + f" ({number})" * (number > 1),
                        sorted({line.of["paper"] for line in part}),
                        sorted({run["key"] for line in part for run in line.runs}), data)


def told(file: Path) -> dict[str, Any] | None:
    """What a figure says of itself; None: not one of ours, or damaged."""
    text = file.read_text("utf-8", errors="replace")
    try:
        tree = ET.fromstring(text)
    except ET.ParseError:
        return None if "reprune figures" not in text else {"pages": [], "caption": "", "numbers": None, "whole": False}
    of = {name: [node.text or "" for node in tree.iter(f"{{http://purl.org/dc/elements/1.1/}}{name}")]
          for name in ("identifier", "description")}
    pages = [node.text for node in tree.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")]
    mark = re.fullmatch(r"numbers (\w{16}) drawing (\w{16})", "".join(of["identifier"]))
    if mark is None:
        return None
    return {"pages": pages, "caption": "".join(of["description"]), "numbers": mark[1], "whole": mark[2] == _seal(text)}


def for_page(root: Path, paper: str) -> list[tuple[str, str]]:
    """The figures that lie there for a page: (path from results/, caption). Reads no record."""
    found = [(list(CAPTIONS).index(kind), file, about["caption"]) for file in _files(root)
             if (kind := file.name.split("-")[0]) in CAPTIONS and (about := told(file)) and paper in about["pages"]]
    return [(f"figures/{quote(file.name)}", caption) for _, file, caption in sorted(found)]


def _files(root: Path) -> list[Path]:
    return sorted((root / "results/figures").glob("*.svg"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reprune figures", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a figure is not up to date")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of experiments/ and results/ (default: here)")
    args = parser.parse_args(argv)
    errors: list[str] = []
    figures = {args.root / f"results/figures/{figure.name}.svg": figure for figure in build(args.root, errors)}
    old = {file: about for file in _files(args.root) if (about := told(file))}
    for file, figure in figures.items():
        if not args.check:
            write_text(file, figure.svg())
        elif file not in old:
            errors.append(f"{_name(file)} is missing: run make figures")
        elif not old[file]["whole"]:
            errors.append(f"{_name(file)} was changed after it was drawn: run make figures")
        elif old[file]["numbers"] != figure.numbers:
            errors.append(f"{_name(file)} was drawn from other numbers than the records hold: run make figures")
    for file in old.keys() - figures.keys():
        if args.check:
            errors.append(f"{_name(file)} shows what no record holds: run make figures")
        else:
            file.unlink()
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def _name(file: Path) -> str:
    return f"results/figures/{file.name}"
