"""Result tables: experiments/*/*.yaml (rows and claims) joined with results/runs/*.json (records) -> results/.

    python -m reprune tables            writes results/<paper>.md, README.md, results.csv and latex/<paper>.tex
    python -m reprune tables --check    writes nothing; names the files that differ from what the records say

Every number is read from a claim or a record. A line of a table holds the runs of one row that differ in nothing but
the seed: runs of other settings stand on lines of their own, and short runs in a section of their own.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import Any

from reprune.files import write_text
from reprune.results.figures import for_page
from reprune.results.latex import latex
from reprune.results.lines import COLUMNS, collect, entry
from reprune.results.markdown import index, page


def as_csv(entries: list[dict[str, Any]]) -> str:
    """A column per key of summary(); unknown: empty."""
    def cell(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([COLUMNS, *([cell(value) for value in line.values()] for line in entries)])
    return file.getvalue()


def build(root: Path) -> tuple[dict[Path, str], list[str]]:
    """-> {file: what it must hold}, and one line per bad file of input"""
    errors: list[str] = []
    found = collect(root, errors, every=True)
    joined = {}
    for paper in sorted({row.id.split("/")[0] for row in found.rows}):
        own = [row for row in found.rows if row.id.split("/")[0] == paper]
        joined[paper] = (found.about[paper], own, [line for row in own for line in found.lines[row.id] if line.runs],
                         [line for row in found.rows if row.id in found.about[paper].get("beside", [])
                          for line in found.lines[row.id]])
    files = {f"{paper}.md": page(paper, *parts, found.norms, for_page(root, paper)) for paper, parts in joined.items()}
    files |= {f"latex/{paper}.tex": latex(paper, about, [line for row in own for line in found.lines[row.id]])
              for paper, (about, own, _, _) in joined.items()}
    if joined:
        files["README.md"] = index(joined)
        files["results.csv"] = as_csv([entry(line) for row in found.rows for line in found.lines[row.id]])
    return {root / "results" / name: text for name, text in files.items()}, errors


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reprune tables", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not up to date")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of experiments/ and results/ (default: here)")
    args = parser.parse_args(argv)
    pages, errors = build(args.root)
    for file, text in sorted(pages.items()):
        if args.check and (not file.is_file() or file.read_text("utf-8") != text):
            name = file.relative_to(args.root).as_posix()
            errors.append(f"{name} differs from what the records say: run make tables")
        elif not args.check:
            write_text(file, text)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0
