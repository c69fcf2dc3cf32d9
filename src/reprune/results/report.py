"""One page to look at the results with: results/index.html, which needs no network and no other file.

    python -m reprune report            writes results/index.html
    python -m reprune report --check    writes nothing; exit 1 if the page differs from what the records say

The page is page/page.html with its style, its scripts and the data put in: the lines of summary.py, and for each line
its claim, its runs and their config. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from reprune.files import write_text
from reprune.results.lines import COLUMNS, Line, collect, entry
from reprune.results.rows import departures
from reprune.results.verdict import KINDS, kind

PAGE = Path(__file__).parent / "page"
OF_ROW = ("paper", "row", "command", "reconstruction", *(name for name in COLUMNS if name.startswith("claim_")))
OF_RUNS = ("keys", "commits", "seeds")                 # follow from the runs of a line
OF_LINE = [name for name in COLUMNS if name not in (*OF_ROW, *OF_RUNS)]
SCRIPTS = ("data.js", "state.js", "table.js", "plot.js", "details.js", "main.js")


class Pool:
    """Says once what many lines say: texts by their index, configs as trees that share their branches."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._at: dict[str, int] = {}

    def index(self, item: Any) -> int:
        text = json.dumps(item)
        if text not in self._at:
            self._at[text] = len(self.items)
            self.items.append(item)
        return self._at[text]

    def tree(self, node: dict) -> int:
        """A mapping becomes {name: leaf, or [index of a mapping]}; a list is a leaf, in a list of its own.

        >>> pool = Pool()
        >>> pool.tree({"a": {"x": 1}, "b": {"x": 1}, "c": [2]}), pool.items
        (1, [{'x': 1}, {'a': [0], 'b': [0], 'c': [[2]]}])
        """
        return self.index({str(k): [self.tree(v)] if isinstance(v, dict) else [v] if isinstance(v, list) else v
                           for k, v in node.items()})


def nested(flat: dict[str, Any]) -> dict:
    """A flat config as a tree again.

    >>> nested({"method.p": 1, "method.rates.2": 0.5})
    {'method': {'p': 1, 'rates': {'2': 0.5}}}
    """
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def described(line: Line, paper: dict) -> dict:
    """What all lines of a row have in common: the file's title and claim, and where the paper is found."""
    about = {name: paper[name] for name in ("title", "authors", "venue", "arxiv", "doi") if name in paper}
    values = entry(line)
    return {"title": line.row.title, "claim": line.row.claim, "about": about, "values": {n: values[n] for n in OF_ROW}}


def otherwise(line: Line) -> list[list]:
    """[name, what the row's file says, what was run], where they differ."""
    row = line.row
    return [[name, *((row.choices[name], line.stats[name]) if name in row.choices
                     else (row.config[name], line.config.get(name)))]
            for name in sorted(departures(row, line.stats, line.config))] if line.runs else []


def content(root: Path, errors: list[str]) -> dict:
    """What the scripts of the page read (data.js). A bad file of input becomes a line in `errors`."""
    found = collect(root, errors)
    rows = sorted((row for row in found.rows if found.lines[row.id]), key=lambda row: row.id)
    lines = [line for row in rows for line in found.lines[row.id]]
    entries = [entry(line) for line in lines]
    text = [name for name in OF_LINE if any(isinstance(e[name], str) for e in entries)]
    at = {row.id: i for i, row in enumerate(rows)}
    texts, configs, changes, table = Pool(), Pool(), Pool(), []

    def said(value: str | None) -> int | None:
        return None if value is None else texts.index(value)

    for line, e in zip(lines, entries, strict=True):
        cells = [said(e[name]) if name in text else whole(e[name]) for name in OF_LINE]
        runs = [[run["key"], run["seed"], run["base"], run["top1"], said(run["commit"]), said(run["torch"])]
                for run in line.runs]
        config = configs.tree(nested(line.config)) if line.runs else None
        verdict = kind(e["verdict"]) if e["verdict"] else None
        table.append([at[line.row.id], cells, said(line.series), said(verdict), runs, config,
                      [changes.index(change) for change in otherwise(line)]])
    about = [described(found.lines[row.id][0], found.about[row.id.split("/")[0]]) for row in rows]
    return {"columns": OF_LINE, "text": text, "texts": texts.items, "configs": configs.items,
            "changes": changes.items, "rows": about, "kinds": KINDS, "lines": table}


def whole(value: Any) -> Any:
    """269722.0 as 269722: shorter."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def embedded(data: dict) -> str:
    """JSON, an item of a list per line; no `<`, so that nothing in it can end the script element it lies in."""
    def short(node: Any) -> str:
        return json.dumps(node, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = [f"{short(name)}:" + ("[\n" + ",\n".join(map(short, node)) + "\n]" if isinstance(node, list)
                                  else short(node)) for name, node in data.items()]
    return ("{" + ",\n".join(parts) + "}").replace("<", "\\u003c")


def page(data: dict) -> str:
    style = (PAGE / "style.css").read_text("utf-8")
    script = "(() => {\n\"use strict\";\n" + "\n".join((PAGE / name).read_text("utf-8") for name in SCRIPTS) + "})();\n"
    parts = {"style": style, "script": script, "data": embedded(data), "style_hash": fingerprint(style),
             "script_hash": fingerprint(script)}
    text = (PAGE / "page.html").read_text("utf-8")
    head, *rest = text.split("{{")
    return head + "".join(parts[name] + after for name, _, after in (piece.partition("}}") for piece in rest))


def fingerprint(text: str) -> str:
    """For the page's Content-Security-Policy: nothing but this very script and style may act."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reprune report", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is not up to date")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of experiments/ and results/ (default: here)")
    args = parser.parse_args(argv)
    errors: list[str] = []
    text, file = page(content(args.root, errors)), args.root / "results/index.html"
    if not args.check:
        write_text(file, text)
    elif not file.is_file() or file.read_bytes() != text.encode():
        errors.append("results/index.html differs from what the records say: run make report")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0
