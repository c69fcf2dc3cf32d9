"""Result tables: experiments/*/*.yaml (rows and claims) joined with results/runs/*.json (records) -> results/.

    tables      results/<paper>.md, README.md, results.csv, latex/<paper>.tex, and what a record is: record.schema.json;
                docs/methods.md and the sentence of the project's README
    report      results/index.html: all of it on one page

Every number is read from a claim or a record. A line of a table holds the runs of one row that differ in nothing but
the seed: runs of other settings stand on lines of their own, and short runs in a section of their own.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reprune.files import write_text
from reprune.results.figures import for_page
from reprune.results.lines import COLUMNS, Line, collect
from reprune.results.render import html
from reprune.results.render.gallery import gallery
from reprune.results.render.latex import latex
from reprune.results.render.markdown import index, page
from reprune.results.render.text import all_counted
from reprune.schema import Record

SHOWN = re.compile(r"(<!-- what has been shown -->)(.*?)(<!-- / -->)", re.S)
Build = Callable[[Path, list[str]], dict[str, str]]     # root, errors -> {file below results/: what it must hold}


def tables(root: Path, errors: list[str]) -> dict[str, str]:
    """One line in `errors` per bad file of input."""
    found = collect(root, errors, every=True)
    papers = sorted({row.paper for row in found.rows})
    files = {f"{paper}.md": page(paper, found, for_page(root, paper)) for paper in papers}
    files |= {f"latex/{paper}.tex": latex(paper, found) for paper in papers if not found.about[paper].compare}
    if papers:
        files |= {"README.md": index(found), "results.csv": as_csv(found.lines)}
    if (root / "docs").is_dir() and (root / "src/reprune/methods").is_dir():      # this project, not a folder of a user
        told = SHOWN.sub(lambda part: f"{part[1]}{all_counted(found)}{part[3]}",
                         (root / "README.md").read_text(encoding="utf-8"))
        files |= {"../docs/methods.md": gallery(root, found), "../README.md": told}
    return files | {"record.schema.json": json.dumps(Record.model_json_schema(), indent=1) + "\n"}


def report(root: Path, errors: list[str]) -> dict[str, str]:
    return {"index.html": html.page(html.content(collect(root, errors)))}


def as_csv(lines: list[Line]) -> str:
    """A column per name of COLUMNS; unknown: empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        writer.writerow([csv_cell(line[name]) for name in COLUMNS])
    return file.getvalue()


def csv_cell(value: Any) -> Any:
    """As a spreadsheet is to take it: a text that looks like a formula stays a text.

    >>> csv_cell("=cmd()"), csv_cell(-1.0), csv_cell(["a", "b"])
    ("'=cmd()", -1, 'a b')
    """
    if isinstance(value, list):
        value = " ".join(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return int(value) if isinstance(value, float) and value.is_integer() else value


def write(build: Build, root: Path, check: bool) -> list[str]:
    """-> what is wrong; check: nothing is written, a file that differs is wrong."""
    errors: list[str] = []
    for name, text in sorted(build(root, errors).items()):
        file = root / name.removeprefix("../") if name.startswith("../") else root / "results" / name
        if not check:
            write_text(file, text)
        elif not file.is_file() or file.read_bytes() != text.encode():
            errors.append(f"{file.relative_to(root)} differs from what the records say: run make {build.__name__}")
    return errors
