"""Result tables: experiments/*/*.yaml (rows and claims) joined with results/runs/*.json (records) -> results/*.md.

    python -m reprune.tables            writes results/<paper>.md and results/README.md
    python -m reprune.tables --check    writes nothing; names the files that differ from what the records say

Every number is read from a claim or a record. A line of a table holds the runs of one row that differ in nothing but
the seed: runs of other settings stand on lines of their own, and short runs in a section of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import yaml
from tabulate import tabulate

from reprune.results import STAGES, Line, Row, lines_of, read_all, read_record, read_row
from reprune.store import write_text


def points(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"                  # + 0.0: no -0.00


def spread(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def epochs(line: Line) -> str:
    run, parts = line.runs[0], ["given weights"] * line.given
    for stage in STAGES:
        ran, paper = run["epochs"][stage], (run["paper_epochs"] or {}).get(stage, "?" if line.row.claim else None)
        if (ran or paper not in (0, "?", None)) and not (stage == "baseline" and line.given):
            parts.append(f"{stage} {ran}" + ("" if paper is None else f"/{paper}"))
    limit = run["config"]["dataset"].get("limit")
    return ", ".join(parts + [f"{limit} images"] * (limit is not None))


def row_link(row: Row) -> str:
    return f"[{row.id.split('/')[1]}](../experiments/{row.id}.yaml)"


def run_links(runs: list[dict]) -> str:
    return " ".join(f"[{run['key'][:8]}](runs/{run['key']}.json)" for run in runs)


def accuracy(line: Line) -> dict[str, str]:
    claim, runs, cells = line.row.claim, line.runs, {"row": row_link(line.row)}
    if claim:
        cells |= {"paper: baseline → pruned": f"{claim['baseline']:.2f} → {claim['pruned']:.2f}",
                  "paper Δ": points(claim["pruned"] - claim["baseline"])}
    if not runs:
        return cells | {"ours: baseline → pruned": line.setting}
    best = [r["pruned"]["top1_best"] for r in runs]
    base, pruned = ([r[net]["top1"] for r in runs] for net in ("baseline", "pruned"))
    return cells | {
        "ours: baseline → pruned": f"{mean(base):.2f} → {spread(pruned)}",
        "our Δ": points(mean(p - b for b, p in zip(base, pruned, strict=True))),
        "best epoch on test": "" if None in best else spread(best), "seeds": str(len(runs)),
        "epochs" + (", run/paper" if claim else ""): epochs(line), "setting": line.setting,
        "runs": run_links(runs)}


def cost(line: Line) -> dict[str, str]:
    claim, runs, cells = line.row.claim, line.runs, {"row": row_link(line.row)}
    for name, key in (("parameters", "params"), ("MACs", "macs")):
        ours = [100 * (1 - r["pruned"][key] / r["baseline"][key]) for r in runs]
        both = f"{mean(ours):.1f}" if runs else "–"
        if claim:
            paper = claim.get(f"{key}_drop")
            both = f"{'–' if paper is None else f'{paper:.1f}'} / {both}"
        cells[f"{name} removed, %" + (": paper / ours" if claim else "")] = both
    speed = defaultdict(list)
    for r in runs:
        at = f"{r['latency']['device']}, batch {r['latency']['batch_size']}, {r['latency']['threads']} threads"
        speed[at].append(r["baseline"]["latency_ms"] / r["pruned"]["latency_ms"])
    return cells | {"measured speed-up": "; ".join(f"{mean(v):.2f}x ({at})" for at, v in sorted(speed.items())),
                    "runs": run_links(runs)}


def source(row: Row) -> dict[str, str]:
    claim = {"claim from": f"{row.claim['source']} ({row.claim['provenance']})"} if row.claim else {}
    return {"row": row_link(row), "what it is": row.title, **claim, "command": f"`{row.command}`"}


def ran(run: dict) -> dict[str, str]:
    return {"run": run_links([run]), "row": run["experiment"].split("/")[1], "seed": str(run["seed"]),
            "method": run["method"], "model": run["model"], "data": run["dataset"], "recipe": run["recipe"],
            "baseline": f"{run['baseline']['top1']:.2f}, {run['baseline']['source']}",
            "pruned": f"{run['pruned']['top1']:.2f}", "commit": str(run["env"].get("git") or "unknown"),
            "torch": str(run["env"].get("torch") or "unknown")}


def table(rows: list[dict[str, str]]) -> str:
    """Markdown; columns in the order of the fullest row, empty columns left out."""
    columns = [c for c in max(rows, key=len) if any(r.get(c) for r in rows)]
    cells = [[r.get(c, "").replace("|", "\\|") for c in columns] for r in rows]
    return tabulate(cells, headers=columns, tablefmt="github", disable_numparse=True)


# ---------------------------------------------------------------- pages

GUIDE = """\
Made by `make tables` from [experiments/{paper}/](../experiments/{paper}) and [runs/](runs); no number is typed by hand.

- **Accuracy** is top-1 in percent on the test set, ours after the last epoch. The best epoch on the test set, which
  some papers report, is a column of its own where it was recorded.
- **Δ** is pruned minus baseline in points; ours is taken against our own baseline of the same seed, then averaged.
- Over n seeds: mean ± sample standard deviation. **Epochs** are those run / those of the paper; *given weights*: the
  baseline was loaded, not trained here. **Speed-up** is the latency of the baseline over that of the pruned net.
"""
INDEX = """\
# Results

Made by `make tables` from [experiments/](../experiments) and [runs/](runs); no number is typed by hand. *Rows* are rows
of the paper's tables: run by the paper's whole recipe, with something changed, with fewer epochs or images, or not yet.

"""
SECTIONS = {
    "full": ("The paper's rows", "The paper's claims beside our runs of the whole recipe."),
    "changed": ("Changed runs", "Runs of a row with something else than its file says, shown under *setting*."),
    "short": ("Short runs", "Fewer epochs than the paper's (`?`: the recipe does not say how many those are), or fewer "
                            "images: not comparable with the claims, and never mixed with the runs above."),
    "own": ("Rows of our own (no claim of the paper)", "What they ran stands under *epochs* and in *Runs* below.")}


def page(paper: str, about: dict, rows: list[Row], lines: list[Line]) -> str:
    """results/<paper>.md"""
    cited = ", ".join(str(about[k]) for k in ("authors", "venue") if about.get(k))
    arxiv = f", [arXiv:{about['arxiv']}](https://arxiv.org/abs/{about['arxiv']})" if about.get("arxiv") else ""
    parts = [f"# {about.get('title', paper)}", cited + arxiv, str(about.get("note", "")), GUIDE.format(paper=paper)]
    for name, (title, text) in SECTIONS.items():
        here = [line for line in lines if line.section == name]
        wanted = [row for row in rows if {"full": row.claim is not None, "own": row.claim is None}.get(name)]
        here += [Line(row, [], "other runs only, see below" if any(line.row is row for line in lines) else "not run")
                 for row in wanted if not any(line.row is row for line in here)]
        if here:
            here.sort(key=lambda line: line.row.id)
            parts += [f"## {title}", text]
            parts += [table([cells(line) for line in here]) for cells in (accuracy, cost)]
        if wanted:
            parts.append(table([source(row) for row in wanted]))
    if runs := [run for line in lines for run in line.runs]:
        parts += ["## Runs", "Each run on its own; the link leads to its record: whole config, widths, times.",
                  table([ran(run) for run in runs])]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def index(papers: dict[str, tuple[dict, list[Row], list[Line]]]) -> str:
    """results/README.md"""
    entries = []
    for paper, (about, rows, lines) in papers.items():
        ran_as = {name: {line.row.id for line in lines if line.section == name} for name in SECTIONS}
        claims = {row.id for row in rows if row.claim}
        counts = {"rows": claims, "full recipe": ran_as["full"], "changed only": ran_as["changed"] - ran_as["full"],
                  "short only": ran_as["short"] - ran_as["full"] - ran_as["changed"],
                  "not run": claims - ran_as["full"] - ran_as["changed"] - ran_as["short"],
                  "own rows run": ran_as["own"]}
        entries.append({"paper": f"[{about.get('title', paper)}]({paper}.md)", "venue": str(about.get("venue", "")),
                        **{name: str(len(ids)) for name, ids in counts.items()},
                        "runs": str(sum(len(line.runs) for line in lines))})
    return INDEX + table(entries) + "\n"


def build(root: Path) -> tuple[dict[Path, str], list[str]]:
    """-> {file: what it must hold}, and one line per bad file of input"""
    errors: list[str] = []
    rows = read_all([*root.glob("experiments/*/*.yaml")], read_row, root, errors)
    if not rows:
        errors.append("experiments: no row, expected experiments/<paper>/<row>.yaml")
    papers = read_all([root / "experiments/papers.yaml"], lambda f: yaml.safe_load(f.read_text("utf-8")), root, errors)
    about = papers[0] if papers and isinstance(papers[0], dict) else {}
    of_row, existing = defaultdict(list), {f"{f.parent.name}/{f.stem}" for f in root.glob("experiments/*/*.yaml")}
    for record in read_all([*root.glob("results/runs/*.json")], read_record, root, errors):
        if record["experiment"] not in existing:
            errors.append(f"results/runs/{record['key']}.json: experiment {record['experiment']!r} has no file "
                          f"experiments/{record['experiment']}.yaml")
        of_row[record["experiment"]].append(record)
    joined = {}
    for paper in sorted({row.id.split("/")[0] for row in rows}):
        if not isinstance(about.get(paper), dict):
            errors.append(f"experiments/papers.yaml: {paper} must be a mapping with title, authors, venue")
        own = [row for row in rows if row.id.split("/")[0] == paper]
        joined[paper] = (about[paper] if isinstance(about.get(paper), dict) else {}, own,
                         [line for row in own for line in lines_of(row, of_row[row.id])])
    pages = {root / f"results/{paper}.md": page(paper, *entry) for paper, entry in joined.items()}
    return pages | ({root / "results/README.md": index(joined)} if joined else {}), errors


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reprune.tables", description=__doc__.split("\n", 1)[0])
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


if __name__ == "__main__":
    sys.exit(main())
