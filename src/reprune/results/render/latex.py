r"""Tables for the appendix of a paper: results/latex/<paper>.tex, to be \input after \usepackage{booktabs,graphicx}.

Long texts (epochs, settings) stand below a table, under a letter for each: a page is narrow. A table that is still too
wide is made smaller; none is blown up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from string import ascii_lowercase

from tabulate import LATEX_ESCAPE_RULES, tabulate

from reprune.results.lines import Collected, Line
from reprune.results.render.text import columns, epochs, points, removed, sparsity, stated, top1

SIGNS = {"→": r"$\rightarrow$", "±": r"$\pm$", "–": "--", "Δ": r"$\Delta$", "≥": r"$\geq$", "≤": r"$\leq$",
         "†": r"$\dagger$"}
FRAME = r"""% Made by `make tables`; needs \usepackage{{booktabs,graphicx}}.
% The lines of the table and their runs (results/runs/<key>.json):
{runs}
\begin{{table}}[ht]
\centering
\caption{{{caption}}}
\label{{tab:{label}}}
\smallskip
\small
\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
{body}%
}}
{notes}\end{{table}}
"""
NOTES = r"""\par\smallskip
\parbox{{\linewidth}}{{\footnotesize {}}}
"""
CAPTION = ("{title}: {what}. Δ is pruned minus baseline accuracy in points; ours after the last epoch, against our own "
           "baseline of the same seed, mean ± standard deviation over the seeds. Params, MACs: removed, in percent")


def signs(text: str) -> str:
    minus = re.sub(r"(?<=\s)-(?=\d)", "$-$", text)
    return minus.translate(str.maketrans(SIGNS))


def escape(text: str) -> str:
    r"""Plain text for LaTeX.

    >>> print(escape("50 % → 2_a"))
    50 \% $\rightarrow$ 2\_a
    """
    return signs("".join(LATEX_ESCAPE_RULES.get(sign, sign) for sign in text))


def ours(line: Line) -> dict[str, str]:
    spread = f" ± {line['delta_std']:.2f}" if line["delta_std"] is not None else ""
    return {"ours": top1(line), "our Δ": points(line["delta"]) + spread, **sparsity(line), "seeds": str(line["seeds"])}


def said(line: Line) -> str:
    """What a reader must know of the runs of a line."""
    return "; ".join(filter(None, [epochs(line), line.setting.replace("`", "")])) if line.runs else ""


def against(line: Line) -> dict[str, str]:
    """A line with a claim."""
    claim = line.row.claim
    return {"row": line.row.id.split("/")[1], "paper": stated(claim, "accuracy"), "paper Δ": stated(claim, "delta"),
            **(ours(line) if line.runs else {}),
            "params": f"{stated(claim, 'params_drop')} / {removed(line, 'params')}",
            "MACs": f"{stated(claim, 'macs_drop')} / {removed(line, 'macs')}",
            "source": claim.source, "verdict": line.verdict.replace("not comparable: ", ""), "runs": said(line)}


def alone(line: Line) -> dict[str, str]:
    """A line without one."""
    return {"row": line.row.id.split("/")[1], "control": line.control or "", "method": line.series, **ours(line),
            "params": removed(line, "params"), "MACs": removed(line, "macs"), "runs": said(line)}


def latex(paper: str, found: Collected) -> str:
    """A row that has not run is shown if it has a claim."""
    title, parts = " ".join((found.about[paper].title or paper).split()), []
    lines = [line for line in found.lines if line.row.paper == paper]
    if claimed := [line for line in lines if line.row.claim and not line.control]:
        caption = CAPTION.format(title=title, what="claims of the paper beside our runs") + ", paper / ours."
        parts.append(frame(caption, f"{paper}-claims", claimed, against))
    if own := [line for line in lines if line.section in ("own", "control")]:
        caption = CAPTION.format(title=title, what="rows without a claim of the paper") + "."
        parts.append(frame(caption, f"{paper}-own", own, alone))
    return "\n".join(parts)


def frame(caption: str, label: str, lines: list[Line], cells: Callable[[Line], dict[str, str]]) -> str:
    rows = [cells(line) for line in lines]
    letters = dict(zip(dict.fromkeys(filter(None, (row["runs"] for row in rows))), ascii_lowercase, strict=False))
    rows = [{**row, "runs": letters.get(row["runs"], row["runs"])} for row in rows]
    names = columns(rows)
    if len(sources := {row.get("source") for row in rows} - {None}) == 1:
        names.remove("source")
        caption += f" The paper's numbers: {sources.pop()}."
    body = tabulate([[row.get(name, "") for name in names] for row in rows], headers=names,
                    tablefmt="latex_booktabs", disable_numparse=True)
    caption += " †: computed from another number of the paper." * ("†" in body)
    runs = [f"% {line.row.id}: {line['keys'] or 'not run'}" for line in lines]
    notes = NOTES.format("; ".join(f"\\emph{{{letter}}}: {escape(text)}" for text, letter in letters.items()))
    return FRAME.format(runs="\n".join(runs), label=label, body=signs(body), caption=escape(caption),
                        notes=notes if letters else "")
