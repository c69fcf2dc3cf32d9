"""The pages of results/: <paper>.md and the index, as Markdown."""

from __future__ import annotations

import re
from urllib.parse import quote

from reprune.results import verdict
from reprune.results.lines import Collected, Line
from reprune.results.render.cells import accuracy, compared, measured, norms, ran, row_link, source
from reprune.results.render.compared import side
from reprune.results.render.text import CONTROLS, STANDINGS, all_counted, columns, counted, reached, standing
from reprune.schema import Paper, Row


def table(rows: list[dict[str, str]]) -> str:
    """As Markdown.

    >>> print(table([{"row": "A"}, {"row": "B", "our Δ": "-0.25", "note": ""}]))
    | row   | our Δ   |
    |-------|---------|
    | A     |         |
    | B     | -0.25   |
    """
    names = columns(rows)
    cells = [[escape(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(name) + 2, *map(len, each)) for name, *each in zip(names, *cells, strict=True)]
    rule = "|".join("-" * (width + 2) for width in widths)
    head, *rest = ["|".join(f" {text:{width}} " for text, width in zip(line, widths, strict=True))
                   for line in [names, *cells]]
    return "\n".join(f"|{line}|" for line in (head, rule, *rest))


def escape(text: str) -> str:
    """For a cell, whatever a file says: it ends no cell and no line, and opens no HTML.

    >>> print(escape("<b> | a"))
    &lt;b> \\| a
    """
    return " ".join(text.split("\n")).replace("<", "&lt;").replace("|", "\\|")


GUIDE = """\
## How to read this

Made by `make tables` from [experiments/{paper}/](../experiments/{paper}) and [runs/](runs); no number is typed by hand.
A row's name leads to its [details](#details), or to those on its own page; all columns: [results.csv](results.csv).

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
    r"- made at": "**Made at** n commits or with n threads: what the runs of the line differ in.",
    r"[0-9a-f]{7}\+[\n,]": "**+** after a commit: when the run was made, files differed from it.",
    r"- after sparse": "**After sparse training** is the accuracy that is left before anything is removed.",
    r"- before recovery": "**Before recovery** is the accuracy after the last removal, before the last fine-tuning.",
    r"- best epoch on test": "**Best epoch on test** is what some papers report, shown where it was recorded.",
    r"\| epochs": "**Epochs** are those run; after a slash, those of the paper's recipe, as far as it is known.",
    r"[|:] given weights": "**Given weights**: the baseline was loaded, not trained here.",
    r"- measured speed-up": "**Speed-up** is the latency of the baseline over that of the pruned net."}
INDEX = """\
# Results

**{told}**

Each claim counts once: by the [verdict](#the-verdict) on its runs of the paper's whole recipe (the weakest, where there
are several settings); or else as run with something changed or with fewer epochs or images ("short"), which is not
comparable; or as not run. {partly}"""
MADE = """\
Made by `make tables` from [experiments/](../experiments) and [runs/](runs); no number is typed by hand. All lines of
all tables: [results.csv](results.csv); to filter, sort and plot: [index.html](index.html)."""
PARTLY = '\n*In part*: method or recipe had to be filled in; the page says what is known and what is not.'
RULE = "One rule for all papers, computed for each line of a table from the claim and our runs."
STANDING = "**{}.** What these words mean stands on the [first page](README.md)."
SECTIONS = {
    "full": ("The paper's rows", "The paper's claims beside our runs of the whole recipe."),
    "changed": ("Changed runs", "Runs of a row with something else than its file says, shown under *setting*."),
    "short": ("Short runs", "Fewer epochs than the paper's (`?`: the recipe does not say how many those are), or fewer "
                            "images: not comparable with the claims, and never mixed with the runs above."),
    "own": ("Rows of our own (no claim of the paper)", "What we tried besides.")}
LEADS = {"full": "Whole recipe", "changed": "Changed run", "short": "Short run", "own": "Ours", "control": "Control"}
BESIDE = "Rows of other folders that this page is to be read with: the same runs serve several pages."
CONTROL = f"""\
What simpler means reach with the same model, data and budget: {'; '.join(f'*{n}*: {w}' for n, w in CONTROLS.items())}.
A method that does not beat them has shown nothing. Our Δ, with the verdict or the epochs of the runs."""
NORMS = """\
The L2 norm of the weights in the group of each filter, after sparse training and before anything is removed. A penalty
that works drives the groups of unnecessary filters to zero; with weight 0 it is plain training. Each run on its own."""


def page(paper: str, found: Collected, figures: list[tuple[str, str]]) -> str:
    """results/<paper>.md; figures: (file, caption)"""
    about, parts = found.about[paper], []
    rows = [row for row in found.rows if row.paper == paper]
    lines = [line for line in found.lines if line.row.paper == paper and line.runs]
    others = [line for line in found.lines if line.row.id in about.beside and not line.control]
    claimed = [row for row in rows if row.claim]
    for name in SECTIONS if not about.compare else ():
        parts += section(name, rows, lines, paper)
    if about.compare:
        parts += [part if isinstance(part, str) else table(part) for part in side(lines)] or ["Nothing has run yet."]
    if held := [line for line in lines if line.control]:
        against = [row for row in claimed if any(line.row is row for line in held)]
        parts += ["## Controls", CONTROL, table([controls(row, found) for row in against]),
                  table([compared(line, paper) for line in held])]
    if others:
        parts += ["## Beside other methods", BESIDE, table([compared(line, paper) for line in others])]
    if not about.compare and (sparse := [norms(line, run, paper) for line in [*lines, *others]
                                         for run in line.runs if run.norms]):
        sparse.sort(key=lambda cells: [cells[name] for name in ("row", "penalty's weight", "seed")])
        parts += ["## Group norms after sparse training", NORMS, table(sparse)]
    if figures:
        parts += ["## Figures", *(f"![{text.split('. ')[0]}]({file})\n\n*{text}*" for file, text in figures)]
    known = "\n\n".join(details(row, [line for line in lines if line.row is row and not about.compare]) for row in rows)
    guide = GUIDE.format(paper=paper) + "".join(
        f"- {text}\n" for mark, text in HINTS.items() if any(re.search(mark, part) for part in [*parts, known]))
    told = STANDING.format(counted([standing(found.of(row)) for row in claimed])) if claimed else ""
    title, *described = head(paper, about)
    all_parts = [title, told, *described, *parts, guide, "## Details", known]
    return "\n\n".join(part.strip() for part in all_parts if part.strip()) + "\n"


def details(row: Row, lines: list[Line]) -> str:
    """All that no table has room for, under a heading that the row's name leads to."""
    parts = [f"### {escape(row.id.split('/')[1])}", escape(row.title), bullets(source(row))]
    for line in lines:
        every = "".join(f"\n  - {escape(ran(run))}" for run in line.runs)
        parts += [f"*{LEADS[line.section]}{f' {line.control}' if line.control else ''}*",
                  f"{bullets(measured(line))}\n- runs:{every}"]
    return "\n\n".join(parts)


def bullets(cells: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {escape(text)}" for name, text in cells.items() if text)


def section(name: str, rows: list[Row], lines: list[Line], paper: str) -> list[str]:
    """The lines of one kind, and those of the rows that belong there and have no such run."""
    title, text = SECTIONS[name]
    here = [line for line in lines if line.section == name]
    wanted = [row for row in rows if {"full": row.claim is not None, "own": row.claim is None}.get(name)]
    ran_here, ran_at_all = ({line.row.id for line in some if not line.control} for some in (here, lines))
    here += [Line(row, values=dict(row.choices),
                  setting="other runs only, see below" if row.id in ran_at_all else "not run")
             for row in wanted if row.id not in ran_here]
    if not here:
        return []
    here.sort(key=lambda line: line.row.id)
    return [*([f"## {title}", text] if any(row.claim for row in rows) else ["## Rows"]),
            table([(compared if name == "own" else accuracy)(line, paper) for line in here])]


def controls(row: Row, found: Collected) -> dict[str, str]:
    """What the controls of a claim reach."""
    own = {row.choices.get("method"): "the row itself"}
    return {"row": row_link(Line(row), row.paper), "our Δ": reached(found.of(row)),
            **{name: own.get(name) or reached(found.of(row, name)) for name in CONTROLS}}


def head(paper: str, about: Paper) -> list[str]:
    cited = [escape(text) for text in (about.authors, about.venue) if text]
    cited += [f"[{label}:{escape(at)}]({site}/{quote(at)})" for at, label, site in (
        (about.arxiv, "arXiv", "https://arxiv.org/abs"), (about.doi, "doi", "https://doi.org")) if at]
    filled = f"**Reconstruction.** {escape(about.reconstruction)}" if about.reconstruction else ""
    return [f"# {escape(about.title or paper)}", ", ".join(cited), filled, escape(about.note or "")]


def index(found: Collected) -> str:
    """results/README.md: the claims of each paper, then what we tried besides."""
    claims, own = [], []
    for paper in sorted({row.paper for row in found.rows}):
        about, rows = found.about[paper], [row for row in found.rows if row.paper == paper]
        link, free = f"[{about.title or paper}]({paper}.md)", [row for row in rows if not row.claim]
        if stand := [standing(found.of(row)) for row in rows if row.claim]:
            kinds = {kind: stand.count(kind) for kind in verdict.KINDS}
            kinds["not comparable"] += sum(name.endswith(" only") for name in stand)
            notes = [text for text in (about.venue, "in part" * bool(about.reconstruction)) if text]
            claims.append({"paper": ", ".join([link, *notes]), "claims": str(len(stand)),
                           **{STANDINGS[kind]: str(number) for kind, number in kinds.items()}})
        runs = [sum(len(line.runs) for line in found.of(row)) for row in free]
        if free:
            own.append({"page": link, "rows": str(len(free)), "rows run": str(sum(map(bool, runs))),
                        "runs": str(sum(runs))})
    rule = verdict.__doc__.partition("\n\n")[2].partition(">>>")[0].strip()
    partly = PARTLY if any(found.about[row.paper].reconstruction for row in found.rows) else ""
    parts = [INDEX.format(told=all_counted(found), partly=partly).strip(), table(claims) if claims else "",
             *(["## Rows of our own", table(own)] if own else []), MADE, "## The verdict", RULE, rule]
    return "\n\n".join(part for part in parts if part) + "\n"
