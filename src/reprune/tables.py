"""Result tables: experiments/*/*.yaml (rows and claims) joined with results/runs/*.json (records) -> results/*.md.

    python -m reprune.tables            writes results/<paper>.md and results/README.md
    python -m reprune.tables --check    writes nothing; names the files that differ from what the records say

Every number is read from a claim or a record. A line of a table holds the runs of one row that differ in nothing but
the seed: runs of other settings stand on lines of their own, and short runs in a section of their own.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, median, stdev

import yaml
from tabulate import tabulate

from reprune import results
from reprune.files import write_text
from reprune.results import STAGES, Line, Row, lines_of, points, read_about, read_all, read_record, read_row, stated


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


def row_link(row: Row, paper: str) -> str:
    """On the page of another paper, with the row's folder."""
    return f"[{row.id.removeprefix(f'{paper}/')}](../experiments/{row.id}.yaml)"


def run_links(runs: list[dict]) -> str:
    return " ".join(f"[{run['key'][:8]}](runs/{run['key']}.json)" for run in runs)


def top1(runs: list[dict]) -> tuple[str, str]:
    """baseline → pruned, and delta"""
    base, pruned = ([r[net]["top1"] for r in runs] for net in ("baseline", "pruned"))
    return f"{mean(base):.2f} → {spread(pruned)}", points(mean(p - b for b, p in zip(base, pruned, strict=True)))


def where_known(runs: list[dict], name: str) -> str:
    values = [r["pruned"].get(name) for r in runs]
    return "" if None in values else spread(values)


def removed(runs: list[dict], key: str) -> str:
    return f"{mean(100 * (1 - r['pruned'][key] / r['baseline'][key]) for r in runs):.1f}" if runs else "–"


def speed_up(runs: list[dict]) -> str:
    speed = defaultdict(list)
    for r in runs:
        at = f"{r['latency']['device']}, batch {r['latency']['batch_size']}, {r['latency']['threads']} threads"
        speed[at].append(r["baseline"]["latency_ms"] / r["pruned"]["latency_ms"])
    return "; ".join(f"{mean(v):.2f}x ({at})" for at, v in sorted(speed.items()))


# ---------------------------------------------------------------- lines of tables: {column: cell}

def accuracy(line: Line, paper: str) -> dict[str, str]:
    claim, runs = line.row.claim, line.runs
    cells = {"row": row_link(line.row, paper), "paper: baseline → pruned": stated(claim, "accuracy"),
             "paper Δ": stated(claim, "delta")}
    if not runs:
        return cells | {"ours: baseline → pruned": line.setting}
    both, delta = top1(runs)
    return cells | {
        "ours: baseline → pruned": both, "our Δ": delta, "before recovery": where_known(runs, "top1_before_recovery"),
        "best epoch on test": where_known(runs, "top1_best"), "seeds": str(len(runs)),
        "epochs, run/paper": epochs(line), "setting": line.setting, "runs": run_links(runs)}


def cost(line: Line, paper: str) -> dict[str, str]:
    claim, runs, cells = line.row.claim, line.runs, {"row": row_link(line.row, paper)}
    for name, key in (("parameters", "params"), ("MACs", "macs")):
        cells[f"{name} removed, %: paper / ours"] = f"{stated(claim, f'{key}_drop')} / {removed(runs, key)}"
    return cells | {"measured speed-up": speed_up(runs), "runs": run_links(runs)}


def compared(line: Line, paper: str) -> dict[str, str]:
    """A row without a claim, or one that stands on the page of another paper: all on one line."""
    runs = line.runs
    cells = {"row": row_link(line.row, paper),
             "method": runs[0]["method"] if runs else line.row.choices.get("method", "")}
    if not runs:
        return cells | {"baseline → pruned": line.setting}
    both, delta = top1(runs)
    return cells | {
        "baseline → pruned": both, "Δ": delta, "before recovery": where_known(runs, "top1_before_recovery"),
        "seeds": str(len(runs)), "epochs" + (", run/paper" if line.row.claim else ""): epochs(line),
        "parameters / MACs removed, %": f"{removed(runs, 'params')} / {removed(runs, 'macs')}",
        "measured speed-up": speed_up(runs), "setting": line.setting, "runs": run_links(runs)}


def norms(line: Line, run: dict, paper: str) -> dict[str, str]:
    """How many groups sparse training has emptied."""
    layers = run["group_norms"].values()
    every = [norm for layer in layers for norm in layer]
    near = [norm <= 0.01 * max(layer) for layer in layers for norm in layer]
    weights = [f"{name.split('.')[2]} {value}" for name, value in sorted(results.flat(run["config"]).items())
               if name.startswith("method.penalties.") and name.endswith(".weight")]
    return {"row": row_link(line.row, paper), "model": run["model"], "setting": line.setting,
            "penalty's weight": ", ".join(weights),
            "seed": str(run["seed"]), "sparse epochs": str(run["epochs"]["sparse"]), "groups": str(len(every)),
            "largest": f"{max(every):.3g}", "median": f"{median(every):.3g}",
            "% below 1 % of the layer's largest": f"{100 * mean(map(int, near)):.1f}",
            "% below 0.01": f"{100 * mean(int(norm < 0.01) for norm in every):.1f}", "run": run_links([run])}


def source(row: Row, paper: str) -> dict[str, str]:
    cells, claim = {"row": row_link(row, paper), "what it is": row.title}, row.claim
    if claim:
        said = [text.format(claim[name]) for name, text in REMARKS.items() if name in claim]
        also = [f"{name.replace('_', ' ')} {claim[name]}" for name in results.ALSO if name in claim]
        place = f" ({claim['provenance']})" * (claim["provenance"] != claim["source"])
        cells |= {"claim from": "; ".join([claim["source"] + place, *said]),
                  "the paper's setting": claim.get("setting", ""),
                  "also stated": re.sub(r" ([kmgb]) (?=\d)", lambda unit: f" ({unit[1].upper()}) ", ", ".join(also)),
                  "reconstructed here": claim.get("reconstruction", "")}
    return cells | {"command": f"`{row.command}`"}


def ran(run: dict) -> dict[str, str]:
    return {"run": run_links([run]), "row": run["experiment"].split("/")[1], "seed": str(run["seed"]),
            "method": run["method"], "model": run["model"], "data": run["dataset"], "recipe": run["recipe"],
            "baseline": f"{run['baseline']['top1']:.2f}, {run['baseline']['source']}",
            "pruned": f"{run['pruned']['top1']:.2f}", "commit": str(run["env"].get("git") or "unknown"),
            "torch": str(run["env"].get("torch") or "unknown")}


def table(rows: list[dict[str, str]]) -> str:
    """Markdown; columns in the order of the fullest row, empty columns left out."""
    order = dict.fromkeys(c for row in sorted(rows, key=len, reverse=True) for c in row)
    columns = [c for c in order if any(r.get(c) for r in rows)]
    cells = [[r.get(c, "").replace("|", "\\|") for c in columns] for r in rows]
    return tabulate(cells, headers=columns, tablefmt="github", disable_numparse=True)


# ---------------------------------------------------------------- pages

REMARKS = {"from_error": "printed as errors", "ambiguous": "ambiguous there", "baseline_source": "baseline: {}",
           "params_provenance": "parameters: {}"}
GUIDE = """\
Made by `make tables` from [experiments/{paper}/](../experiments/{paper}) and [runs/](runs); no number is typed by hand.

- **Accuracy** is top-1 in percent on the test set, ours after the last epoch. Over n seeds: mean ± sample standard
  deviation.
- **Δ** is pruned minus baseline in points; ours is taken against our own baseline of the same seed, then averaged.
"""
HINTS = {               # what is found in a table -> its explanation
    r"[|/] – ": "**–**: not stated, or not run.",
    r"\| [>≤] ": "**>** and **≤** are a paper's \"more than\" and \"up to\".",
    r"\| [>≥] 0": "A Δ **> 0** or **≥ 0**: better than, or not worse than the baseline, the amount is not stated.",
    r"†": "**†** marks numbers computed from another number of the paper, such as 87.5 % from 8x fewer.",
    r"\(top-5\)": "**Top-5** stands where the paper gives nothing else; ours is top-1 all the same.",
    r"\| before recovery": "**Before recovery** is the accuracy after the last removal, before the last fine-tuning.",
    r"\| best epoch on test": "**Best epoch on test** is what some papers report, shown where it was recorded.",
    r"\| epochs, run/paper": "**Epochs** are those run / those of the paper's recipe, as far as it is known.",
    r"\| given weights": "**Given weights**: the baseline was loaded, not trained here.",
    r"\| measured speed-up": "**Speed-up** is the latency of the baseline over that of the pruned net."}
INDEX = """\
# Results

Made by `make tables` from [experiments/](../experiments) and [runs/](runs); no number is typed by hand. *Rows* are rows
of the paper's tables: run by the paper's whole recipe, with something changed, with fewer epochs or images, or not yet.

"""
RECONSTRUCTED = """\
*Reconstruction*: "in part" where method or recipe had to be filled in; the page says what is known and what is not.

"""
SECTIONS = {
    "full": ("The paper's rows", "The paper's claims beside our runs of the whole recipe."),
    "changed": ("Changed runs", "Runs of a row with something else than its file says, shown under *setting*."),
    "short": ("Short runs", "Fewer epochs than the paper's (`?`: the recipe does not say how many those are), or fewer "
                            "images: not comparable with the claims, and never mixed with the runs above."),
    "own": ("Rows of our own (no claim of the paper)", "What they ran stands under *epochs* and in *Runs* below.")}
BESIDE = "Rows of other folders that this page is to be read with: the same runs serve several pages."
NORMS = """\
The L2 norm of the weights in the group of each filter, after sparse training and before anything is removed. A penalty
that works drives the groups of unnecessary filters to zero; with weight 0 it is plain training. Each run on its own."""


def page(paper: str, about: dict, rows: list[Row], lines: list[Line], others: list[Line]) -> str:
    """results/<paper>.md"""
    parts = []
    for name, (title, text) in SECTIONS.items():
        here = [line for line in lines if line.section == name]
        wanted = [row for row in rows if {"full": row.claim is not None, "own": row.claim is None}.get(name)]
        here += [Line(row, [], "other runs only, see below" if any(line.row is row for line in lines) else "not run")
                 for row in wanted if not any(line.row is row for line in here)]
        here.sort(key=lambda line: line.row.id)
        if here:
            parts += [f"## {title if any(row.claim for row in rows) else 'Rows'}", text]
            parts += [table([cells(line, paper) for line in here])
                      for cells in ([compared] if name == "own" else [accuracy, cost])]
        if wanted:
            parts.append(table([source(row, paper) for row in wanted]))
    if others:
        parts += ["## Beside other methods", BESIDE, table([compared(line, paper) for line in others]),
                  table([source(row, paper) for row in {line.row.id: line.row for line in others}.values()])]
    if sparse := [norms(line, run, paper) for line in [*lines, *others] for run in line.runs if run.get("group_norms")]:
        sparse.sort(key=lambda cells: [cells[name] for name in ("model", "row", "penalty's weight", "setting", "seed")])
        parts += ["## Group norms after sparse training", NORMS, table(sparse)]
    if runs := [run for line in lines for run in line.runs]:
        parts += ["## Runs", "Each run on its own; the link leads to its record: whole config, widths, times.",
                  table([ran(run) for run in runs])]
    guide = GUIDE.format(paper=paper) + "".join(
        f"- {text}\n" for mark, text in HINTS.items() if any(re.search(mark, part) for part in parts))
    return "\n\n".join(part.strip() for part in [*head(paper, about), guide, *parts] if part.strip()) + "\n"


def head(paper: str, about: dict) -> list[str]:
    cited = [about[name] for name in ("authors", "venue") if name in about]
    cited += [f"[{label}:{about[name]}]({site}/{about[name]})" for name, label, site in (
        ("arxiv", "arXiv", "https://arxiv.org/abs"), ("doi", "doi", "https://doi.org")) if name in about]
    filled = f"**Reconstruction.** {about['reconstruction']}" if "reconstruction" in about else ""
    return [f"# {about.get('title', paper)}", ", ".join(cited), filled, about.get("note", "")]


def index(papers: dict[str, tuple[dict, list[Row], list[Line], list[Line]]]) -> str:
    """results/README.md"""
    entries = []
    for paper, (about, rows, lines, _) in papers.items():
        ran_as = {name: {line.row.id for line in lines if line.section == name} for name in SECTIONS}
        claims = {row.id for row in rows if row.claim}
        counts = {"rows": claims, "full recipe": ran_as["full"], "changed only": ran_as["changed"] - ran_as["full"],
                  "short only": ran_as["short"] - ran_as["full"] - ran_as["changed"],
                  "not run": claims - ran_as["full"] - ran_as["changed"] - ran_as["short"],
                  "own rows run": ran_as["own"]}
        entries.append({"paper": f"[{about.get('title', paper)}]({paper}.md)", "venue": about.get("venue", ""),
                        "reconstruction": "in part" if "reconstruction" in about else "",
                        **{name: str(len(ids)) for name, ids in counts.items()},
                        "runs": str(sum(len(line.runs) for line in lines))})
    filled = RECONSTRUCTED if any(entry["reconstruction"] for entry in entries) else ""
    return INDEX + filled + table(entries) + "\n"


def build(root: Path) -> tuple[dict[Path, str], list[str]]:
    """-> {file: what it must hold}, and one line per bad file of input"""
    errors: list[str] = []
    rows = read_all([*root.glob("experiments/*/*.yaml")], read_row, root, errors)
    if not rows:
        errors.append("experiments: no row, expected experiments/<paper>/<row>.yaml")
    papers = read_all([root / "experiments/papers.yaml"], lambda f: yaml.safe_load(f.read_text("utf-8")), root, errors)
    of_row, existing = defaultdict(list), {f"{f.parent.name}/{f.stem}" for f in root.glob("experiments/*/*.yaml")}
    for record in read_all([*root.glob("results/runs/*.json")], read_record, root, errors):
        if record["experiment"] not in existing:
            errors.append(f"results/runs/{record['key']}.json: experiment {record['experiment']!r} has no file "
                          f"experiments/{record['experiment']}.yaml")
        of_row[record["experiment"]].append(record)
    about = read_about(papers[0] if papers else None, existing, errors)
    lines = {row.id: lines_of(row, of_row[row.id]) for row in rows}
    joined = {}
    for paper in sorted({row.id.split("/")[0] for row in rows}):
        own = [row for row in rows if row.id.split("/")[0] == paper]
        joined[paper] = (about[paper], own, [line for row in own for line in lines[row.id]],
                         [line for row in rows if row.id in about[paper].get("beside", [])
                          for line in lines[row.id] or [Line(row, [], "not run")]])
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
