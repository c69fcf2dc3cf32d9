r"""Tables for the appendix of a paper: results/latex/<paper>.tex, to be \input after \usepackage{booktabs,graphicx}."""

from __future__ import annotations

import re
from collections.abc import Callable

from tabulate import LATEX_ESCAPE_RULES, tabulate

from reprune.pages import epochs, removed, top1
from reprune.results import points, stated
from reprune.summary import Line

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
\resizebox{{\linewidth}}{{!}}{{%
{body}%
}}
\end{{table}}
"""
CAPTION = ("{title}: {what}. Δ is pruned minus baseline accuracy in points; ours after the last epoch, against our own "
           "baseline of the same seed, mean ± standard deviation over the seeds. params, MACs: removed, in percent")


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
    stats = line.stats
    spread = f" ± {stats['delta_std']:.2f}" if stats["delta_std"] is not None else ""
    return {"ours": top1(stats), "our Δ": points(stats["delta"]) + spread, "seeds": str(stats["seeds"])}


def against(line: Line) -> dict[str, str]:
    """A line with a claim."""
    claim = line.row.claim
    return {"row": line.row.id.split("/")[1], "paper": stated(claim, "accuracy"), "paper Δ": stated(claim, "delta"),
            **(ours(line) if line.runs else {}),
            "params": f"{stated(claim, 'params_drop')} / {removed(line, 'params')}",
            "MACs": f"{stated(claim, 'macs_drop')} / {removed(line, 'macs')}",
            "setting": line.setting.replace("`", ""), "source": claim["source"], "verdict": line.verdict}


def alone(line: Line) -> dict[str, str]:
    """A line without one."""
    cells = {"row": line.row.id.split("/")[1]}
    if not line.runs:
        return cells | {"method": line.row.choices.get("method", ""), "ours": "not run"}
    return cells | {"method": line.stats["method"], **ours(line), "epochs": epochs(line),
                    "params": removed(line, "params"), "MACs": removed(line, "macs"),
                    "setting": line.setting.replace("`", "")}


def latex(paper: str, about: dict, lines: list[Line]) -> str:
    """lines: of the rows of one paper; a row that has not run has a line too."""
    title, parts = " ".join(about.get("title", paper).split()), []
    if claimed := [line for line in lines if line.row.claim]:
        said = CAPTION.format(title=title, what="claims of the paper beside our runs") + ", paper / ours."
        parts.append(frame(said, f"{paper}-claims", claimed, against))
    if own := [line for line in lines if not line.row.claim]:
        said = CAPTION.format(title=title, what="rows without a claim of the paper") + "."
        parts.append(frame(said, f"{paper}-own", own, alone))
    return "\n".join(parts)


def frame(caption: str, label: str, lines: list[Line], cells: Callable[[Line], dict[str, str]]) -> str:
    rows = [cells(line) for line in lines]
    order = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    columns = [name for name in order if any(row.get(name) for row in rows)]
    body = tabulate([[row.get(name, "") for name in columns] for row in rows], headers=columns,
                    tablefmt="latex_booktabs", disable_numparse=True)
    caption += " †: computed from another number of the paper." * ("†" in body)
    runs = [f"% {line.row.id}: {' '.join(run['key'] for run in line.runs) or 'not run'}" for line in lines]
    return FRAME.format(runs="\n".join(runs), label=label, body=signs(body), caption=escape(caption))
