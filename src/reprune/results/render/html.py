"""One page to look at the results with: results/index.html, which needs no network and no other file.

It is page/page.html with its style, its scripts and the data put in: the lines of lines.py, and for each line
its claim, its runs and their config. The same input gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from pathlib import Path
from typing import Any

from reprune.results.figures.numbers import is_short
from reprune.results.lines import COLUMNS, Collected, Line
from reprune.results.render.text import all_counted
from reprune.results.rows import departures
from reprune.results.styles import outline, style
from reprune.results.verdict import KINDS, kind
from reprune.schema import Paper

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


def described(line: Line, paper: Paper) -> dict:
    """What all lines of a row have in common: the file's title and claim, and where the paper is found."""
    about = paper.model_dump(include={"title", "authors", "venue", "arxiv", "doi"}, exclude_none=True)
    claim = line.row.claim and line.row.claim.model_dump(exclude_none=True)
    return {"title": line.row.title, "claim": claim, "about": about, "values": {name: line[name] for name in OF_ROW}}


def otherwise(line: Line) -> list[list]:
    """[name, what the row's file says, what was run], where they differ."""
    row = line.row
    return [[name, *((row.choices[name], line[name]) if name in row.choices
                     else (row.config[name], line.config.get(name)))]
            for name in sorted(departures(row, line.values, line.config))] if line.runs and not line.control else []


def content(found: Collected) -> dict:
    """What the scripts of the page read (data.js): claims first, of them those that have run."""
    text = [name for name in OF_LINE if any(isinstance(line[name], str) for line in found.lines)]
    texts, configs, changes, table, rows = Pool(), Pool(), Pool(), [], {}

    def said(value: str | None) -> int | None:
        return None if value is None else texts.index(value)

    for line in sorted(found.lines, key=lambda line: (line.row.claim is None, not line.runs)):
        at = rows.setdefault(line.row.id, (len(rows), described(line, found.about[line.row.paper])))[0]
        cells = [said(line[name]) if name in text else whole(line[name]) for name in OF_LINE]
        runs = [[of.key, of.seed, of.baseline.top1, of.pruned.top1, said(of.env.git or "unknown"),
                 said(of.env.torch or "unknown")] for of in (run.record for run in line.runs)]
        config = configs.tree(nested(line.config)) if line.runs else None
        verdict = kind(line.verdict) if line.verdict else None
        table.append([at, cells, said(line.series), said(verdict), runs, config,
                      [changes.index(change) for change in otherwise(line)], int(pale(line))])
    looks = {line.series: style(line.series) for line in found.lines}
    return {"told": all_counted(found),
            "looks": {series: [colour, outline(marker)] for series, (colour, marker) in sorted(looks.items())},
            "columns": OF_LINE, "text": text, "texts": texts.items, "configs": configs.items, "changes": changes.items,
            "rows": [about for _, about in rows.values()], "kinds": KINDS, "lines": table}


def pale(line: Line) -> bool:
    """Not what the paper's recipe, or the row's file, would have reached."""
    return bool(line.runs) and (line.section in ("short", "changed") or is_short(line))


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
    css = (PAGE / "style.css").read_text("utf-8")
    script = "(() => {\n\"use strict\";\n" + "\n".join((PAGE / name).read_text("utf-8") for name in SCRIPTS) + "})();\n"
    parts = {"style": css, "script": script, "data": embedded(data), "style_hash": fingerprint(css),
             "script_hash": fingerprint(script), "told": escape(data["told"])}
    text = (PAGE / "page.html").read_text("utf-8")
    head, *rest = text.split("{{")
    return head + "".join(parts[name] + after for name, _, after in (piece.partition("}}") for piece in rest))


def fingerprint(text: str) -> str:
    """For the page's Content-Security-Policy: nothing but this very script and style may act."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
