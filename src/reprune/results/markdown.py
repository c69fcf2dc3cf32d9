"""The pages of results/: <paper>.md and the index, as Markdown. Every number is read from a claim or from a line."""

from __future__ import annotations

import re

from tabulate import tabulate

from reprune.results import rows as results
from reprune.results import verdict
from reprune.results.controls import CONTROLS, controls_of
from reprune.results.lines import Line
from reprune.results.rows import STAGES, Row, points, stated


def spread(ours: dict, name: str) -> str:
    """Mean ± standard deviation over the seeds; empty where not every run knows it."""
    if ours[name] is None:
        return ""
    return f"{ours[name]:.2f}" + (f" ± {ours[f'{name}_std']:.2f}" if ours[f"{name}_std"] is not None else "")


def epochs(line: Line) -> str:
    ours, parts = line.stats, ["given weights"] * line.given
    for stage in STAGES:
        ran, paper = ours[f"epochs.{stage}"], ours[f"paper.{stage}"]
        if not ours["paper_known"]:
            paper = "?" if line.row.claim else None
        if (ran or paper not in (0, "?", None)) and not (stage == "baseline" and line.given):
            parts.append(f"{stage} {ran}" + ("" if paper is None else f"/{paper}"))
    return ", ".join(parts + [f"{ours['images']} images"] * (ours["images"] is not None))


def row_link(row: Row, paper: str) -> str:
    """On the page of another paper, with the row's folder."""
    return f"[{row.id.removeprefix(f'{paper}/')}](../experiments/{row.id}.yaml)"


def run_links(runs: list[dict]) -> str:
    return " ".join(f"[{run['key'][:8]}](runs/{run['key']}.json)" for run in runs)


def commits(line: Line) -> str:
    """Where the runs of a line do not share one checkout."""
    made_at = line.stats["commits"]
    names = ", ".join(name[:7] + "+" * name.endswith("+") for name in made_at)
    return f"{len(made_at)} commits: {names}" if len(made_at) > 1 else ""


def top1(ours: dict) -> str:
    """baseline → pruned"""
    return f"{ours['baseline_top1']:.2f} → {spread(ours, 'pruned_top1')}"


def removed(line: Line, key: str) -> str:
    return f"{line.stats[f'{key}_drop']:.1f}" if line.runs else "–"


# ---------------------------------------------------------------- lines of tables: {column: cell}

def accuracy(line: Line, paper: str) -> dict[str, str]:
    claim, ours = line.row.claim, line.stats
    cells = {"row": row_link(line.row, paper), "paper: baseline → pruned": stated(claim, "accuracy"),
             "paper Δ": stated(claim, "delta")}
    if not line.runs:
        return cells | {"ours: baseline → pruned": line.setting or "not run"}
    return cells | {
        "ours: baseline → pruned": top1(ours), "our Δ": points(ours["delta"]), "verdict": line.verdict,
        "before recovery": spread(ours, "before"), "best epoch on test": spread(ours, "best"),
        "seeds": str(ours["seeds"]), "epochs, run/paper": epochs(line), "setting": line.setting,
        "runs": run_links(line.runs)}


def cost(line: Line, paper: str) -> dict[str, str]:
    """What a machine was measured on is a column of its own."""
    cells, claim = {"row": row_link(line.row, paper)}, line.row.claim
    for name, key in (("parameters", "params"), ("MACs", "macs")):
        beside = (": paper / ours", f"{stated(claim, f'{key}_drop')} / ") if claim else ("", "")
        cells[f"{name} removed, %{beside[0]}"] = beside[1] + removed(line, key)
    speed = {f"measured speed-up ({machine})": f"{ratio:.2f}x" for machine, ratio in sorted(line.speed)}
    return cells | speed | ({"made at": commits(line), "runs": run_links(line.runs)} if line.runs else {})


def compared(line: Line, paper: str) -> dict[str, str]:
    """A row without a claim, or one that stands on the page of another paper."""
    ours, cells = line.stats, {"row": row_link(line.row, paper)}
    if not line.runs:
        return cells | {"method": line.series, "baseline → pruned": line.setting or "not run"}
    return cells | {
        "method": line.series, "baseline → pruned": top1(ours), "Δ": points(ours["delta"]),
        "before recovery": spread(ours, "before"), "seeds": str(ours["seeds"]),
        "epochs" + (", run/paper" if line.row.claim else ""): epochs(line),
        "setting": line.setting, "runs": run_links(line.runs)}


def sizes(lines: list[Line], paper: str) -> str:
    return table([cost(line, paper) for line in lines]) if lines else ""


def norms(line: Line, norm: dict, paper: str) -> dict[str, str]:
    """How many groups sparse training has emptied."""
    weights = [f"{name.split('.')[2]} {value}" for name, value in sorted(line.config.items())
               if name.startswith("method.penalties.") and name.endswith(".weight")]
    others = [said for said in line.setting.split(", ") if not re.match(r"`method\.penalties\.\w+\.weight=", said)]
    return {"row": row_link(line.row, paper), "model": norm["model"], "setting": ", ".join(others),
            "penalty's weight": ", ".join(weights),
            "seed": str(norm["seed"]), "sparse epochs": str(norm["epochs"]), "groups": str(norm["groups"]),
            "largest": f"{norm['largest']:.3g}", "median": f"{norm['median']:.3g}",
            "% below 1 % of the layer's largest": f"{100 * norm['near'] / norm['groups']:.1f}",
            "% below 0.01": f"{100 * norm['small'] / norm['groups']:.1f}", "run": run_links([norm])}


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
            "baseline": f"{run['base']:.2f}, {run['source']}", "pruned": f"{run['top1']:.2f}",
            "commit": run["commit"], "torch": run["torch"]}


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
    r"\| verdict": "**Verdict**: does the claim hold here? By [one rule](README.md#the-verdict) for all papers.",
    r"\| made at": "**Made at** n commits: the runs of the line were made by different states of this project.",
    r"[0-9a-f]{7}\+[ ,]": "**+** after a commit: when the run was made, files differed from it.",
    r"\| before recovery": "**Before recovery** is the accuracy after the last removal, before the last fine-tuning.",
    r"\| best epoch on test": "**Best epoch on test** is what some papers report, shown where it was recorded.",
    r"\| epochs": "**Epochs** are those run; after a slash, those of the paper's recipe, as far as it is known.",
    r"\| given weights": "**Given weights**: the baseline was loaded, not trained here.",
    r"\| measured speed-up": "**Speed-up** is the latency of the baseline over that of the pruned net."}
INDEX = """\
# Results

Made by `make tables` from [experiments/](../experiments) and [runs/](runs); no number is typed by hand; all lines
of all tables as one file: [results.csv](results.csv).

*Claims* are rows of the paper's tables. Each counts once: by the [verdict](#the-verdict) on its runs of the paper's
whole recipe (the weakest, where there are several settings), or else as run with something changed, with fewer epochs
or images, or not yet.

"""
STANDINGS = {"reproduced": "reproduced", "within": "within x", "off": "off by x", "not comparable": "not comparable",
             "changed only": "changed only", "short only": "short only", "not run": "not run"}
RULE = "One rule for all papers, computed for each line of a table from the claim and our runs."
RECONSTRUCTED = """\
*Reconstruction*: "in part" where method or recipe had to be filled in; the page says what is known and what is not.

"""
STANDING = "The paper's claims here: {}. What these words mean stands on the [first page](README.md)."
SECTIONS = {
    "full": ("The paper's rows", "The paper's claims beside our runs of the whole recipe."),
    "changed": ("Changed runs", "Runs of a row with something else than its file says, shown under *setting*."),
    "short": ("Short runs", "Fewer epochs than the paper's (`?`: the recipe does not say how many those are), or fewer "
                            "images: not comparable with the claims, and never mixed with the runs above."),
    "own": ("Rows of our own (no claim of the paper)", "Controls, which *Controls* sets beside the claims, and what "
                                                       "we tried besides.")}
BESIDE = "Rows of other folders that this page is to be read with: the same runs serve several pages."
CONTROL = f"""\
What simpler means reach with the same model, data and budget: {'; '.join(f'*{n}*: {w}' for n, w in CONTROLS.items())}.
A method that does not beat them has shown nothing. Our Δ, with the verdict or the epochs of the runs."""
NORMS = """\
The L2 norm of the weights in the group of each filter, after sparse training and before anything is removed. A penalty
that works drives the groups of unnecessary filters to zero; with weight 0 it is plain training. Each run on its own."""


def page(paper: str, about: dict, rows: list[Row], lines: list[Line], others: list[Line],
         norm: dict[str, dict], figures: list[tuple[str, str]]) -> str:
    """results/<paper>.md; lines: of its rows that have run; norm: see records.NORMS; figures: (file, caption)"""
    parts = []
    for name, (title, text) in SECTIONS.items():
        here = [line for line in lines if line.section == name]
        wanted = [row for row in rows if {"full": row.claim is not None, "own": row.claim is None}.get(name)]
        ran_here, ran_at_all = ({line.row.id for line in some} for some in (here, lines))
        here += [Line(row, setting="other runs only, see below" if row.id in ran_at_all else "not run")
                 for row in wanted if row.id not in ran_here]
        here.sort(key=lambda line: line.row.id)
        if here:
            parts += [f"## {title}", text] if any(row.claim for row in rows) else ["## Rows"]
            parts += [table([(compared if name == "own" else accuracy)(line, paper) for line in here]),
                      sizes([line for line in here if line.runs or line.row.claim], paper)]
        if wanted:
            parts.append(table([source(row, paper) for row in wanted]))
    if claimed := [row for row in rows if row.claim]:
        parts += ["## Controls", CONTROL, *controls(claimed, rows, lines, others, paper)]
    if others:
        parts += ["## Beside other methods", BESIDE, table([compared(line, paper) for line in others]),
                  sizes([line for line in others if line.runs], paper),
                  table([source(row, paper) for row in {line.row.id: line.row for line in others}.values()])]
    if sparse := [norms(line, norm[run["key"]], paper) for line in [*lines, *others] for run in line.runs
                  if run["key"] in norm]:
        sparse.sort(key=lambda cells: [cells[name] for name in ("model", "row", "penalty's weight", "setting", "seed")])
        parts += ["## Group norms after sparse training", NORMS, table(sparse)]
    if figures:
        parts += ["## Figures", *(f"![{text.split('. ')[0]}]({file})\n\n*{text}*" for file, text in figures)]
    if runs := [run for line in lines for run in line.runs]:
        parts += ["## Runs", "Each run on its own; the link leads to its record: whole config, widths, times.",
                  table([ran(run) for run in runs])]
    guide = GUIDE.format(paper=paper) + "".join(
        f"- {text}\n" for mark, text in HINTS.items() if any(re.search(mark, part) for part in parts))
    stand = [standing(row, [line for line in lines if line.row is row]) for row in rows if row.claim]
    told = ", ".join(f"{stand.count(name)} {title}" for name, title in STANDINGS.items() if name in stand)
    first = [*head(paper, about), STANDING.format(told) if told else "", guide]
    return "\n\n".join(part.strip() for part in [*first, *parts] if part.strip()) + "\n"


def controls(claimed: list[Row], rows: list[Row], lines: list[Line], others: list[Line], paper: str) -> list[str]:
    """A table of what the controls reach, and a note of those that are missing."""
    missing: dict[str, list[str]] = {}

    def reached(row: Row) -> str:
        ran = [f"{points(line.stats['delta'])} ({line.verdict.replace('not comparable: ', '') or epochs(line)})"
               for line in [*lines, *others] if line.row.id == row.id and line.runs]
        return "; ".join(ran) or "not run"

    def cells(row: Row) -> dict[str, str]:
        found = controls_of(row, [*rows, *{line.row.id: line.row for line in others}.values()])
        for name in [name for name, controls in found.items() if not controls]:
            missing.setdefault(name, []).append(row.id.removeprefix(f"{paper}/"))
        return {"row": row_link(row, paper), "our Δ": reached(row), **{
            name: "; ".join("the row itself" if control is row else f"{row_link(control, paper)}: {reached(control)}"
                            for control in controls) or "missing" for name, controls in found.items()}}

    text = table([cells(row) for row in claimed])
    said = "; ".join(f"*{name}* of {', '.join(ids)}" for name, ids in missing.items())
    return [text, f"Missing: {said}." if said else ""]


def head(paper: str, about: dict) -> list[str]:
    cited = [about[name] for name in ("authors", "venue") if name in about]
    cited += [f"[{label}:{about[name]}]({site}/{about[name]})" for name, label, site in (
        ("arxiv", "arXiv", "https://arxiv.org/abs"), ("doi", "doi", "https://doi.org")) if name in about]
    filled = f"**Reconstruction.** {about['reconstruction']}" if "reconstruction" in about else ""
    return [f"# {about.get('title', paper)}", ", ".join(cited), filled, about.get("note", "")]


def standing(row: Row, lines: list[Line]) -> str:
    """How the index counts a claim: by the weakest verdict on runs of the whole recipe; else by what else has run."""
    full = [verdict.kind(line.verdict) for line in lines if line.section == "full"]
    if full:
        return max(full, key=verdict.KINDS.index)
    return next((f"{name} only" for name in ("changed", "short") if any(line.section == name for line in lines)),
                "not run")


def index(papers: dict[str, tuple[dict, list[Row], list[Line], list[Line]]]) -> str:
    """results/README.md"""
    entries = []
    for paper, (about, rows, lines, _) in papers.items():
        claims = [row for row in rows if row.claim]
        stand = [standing(row, [line for line in lines if line.row is row]) for row in claims]
        entries.append({"paper": f"[{about.get('title', paper)}]({paper}.md)", "venue": about.get("venue", ""),
                        "reconstruction": "in part" if "reconstruction" in about else "", "claims": str(len(claims)),
                        **{title: str(stand.count(name)) for name, title in STANDINGS.items()},
                        "own rows run": str(len({line.row.id for line in lines if line.section == "own"})),
                        "runs": str(sum(len(line.runs) for line in lines))})
    filled = RECONSTRUCTED if any(entry["reconstruction"] for entry in entries) else ""
    rule = verdict.__doc__.partition("\n\n")[2].partition(">>>")[0].strip()
    return f"{INDEX}{filled}{table(entries)}\n\n## The verdict\n\n{RULE}\n\n{rule}\n"
