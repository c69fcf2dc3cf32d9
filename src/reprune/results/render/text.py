"""Cells that Markdown, LaTeX and the terminal say alike: of a claim, and of a line of runs."""

from __future__ import annotations

from reprune.results import verdict
from reprune.results.lines import Collected, Line
from reprune.schema import STAGES, Claim

CONTROLS = {"random": "random filters", "scratch": "the widths, trained from fresh weights", "l1": "smallest L1-norms"}


STANDINGS = {"reproduced": "reproduced", "within": "within x", "off": "off by x", "not comparable": "not comparable",
             "changed only": "changed only", "short only": "short only", "not run": "not run"}
NOTHING = ("", "0")                 # a column that says nothing but this is left out


def columns(rows: list[dict[str, str]]) -> list[str]:
    """Of a table, in the order of its fullest row; those that say nothing are left out."""
    order = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    return [name for name in order if any(row.get(name, "") not in NOTHING for row in rows)]


def points(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"                  # + 0.0: no -0.00


def stated(claim: Claim, what: str) -> str:
    """`accuracy`, `delta`, `params_drop` or `macs_drop`, as far as the paper states it.

    >>> claim = Claim(params_drop_min=50, source="abstract", provenance="abstract")
    >>> stated(claim, "params_drop"), stated(claim, "macs_drop")
    ('> 50', '–')
    """
    def say(name: str, form: str) -> str:
        value = getattr(claim, name)
        return "–" if value is None else f"{value:{form}}" + " †" * (name in claim.derived)

    top5 = " (top-5)" * (claim.metric == "top5")
    if what == "accuracy":
        both = [say(name, ".2f") for name in ("baseline", "pruned")]
        return "–" if both == ["–", "–"] else " → ".join(both) + top5
    if what == "delta":
        worded = "> 0" if claim.better_than_baseline else "≥ 0" if claim.no_accuracy_loss else ""
        said = say("delta", "+.2f") if claim.delta is not None else worded if claim.step is None else points(claim.step)
        return said + top5 if said else "–"
    bounds = [sign + say(what + end, ".3g") for sign, end in (("> ", "_min"), ("≤ ", "_max"))
              if getattr(claim, what + end) is not None]
    return ", ".join(bounds) or say(what, ".1f")


def origin(claim: Claim) -> str:
    return claim.source + f" ({claim.provenance})" * (claim.provenance != claim.source)


def spread(line: Line, name: str) -> str:
    """Mean ± standard deviation over the seeds; empty where not every run knows it."""
    if line[name] is None:
        return ""
    return f"{line[name]:.2f}" + (f" ± {line[f'{name}_std']:.2f}" if line[f"{name}_std"] is not None else "")


def top1(line: Line) -> str:
    """baseline → pruned"""
    return f"{line['baseline_top1']:.2f} → {spread(line, 'pruned_top1')}"


def removed(line: Line, key: str) -> str:
    return f"{line[f'{key}_drop']:.1f}" if line.runs else "–"


def sparsity(line: Line) -> dict[str, str]:
    """Of nets whose single weights are pruned, or that are coded."""
    return {"weights left, %": f"{line['density']:.2f}" if line["density"] is not None else "",
            "bytes": f"{line['bytes']:,.0f} ({line['bytes_ratio']:.1f}x fewer)" if line["bytes"] else "",
            "bits per parameter": f"{line['bits']:.2f}" if line["bits"] else ""}


def epochs(line: Line) -> str:
    """Those run, of each stage; after a slash those of the paper's recipe, as far as it is known."""
    parts = ["given weights"] * line.given
    for stage in STAGES:
        ran, paper = line[f"epochs_{stage}"], line[f"paper_epochs_{stage}"]
        if not line["paper_known"]:
            paper = "?" if line.row.claim else None
        if (ran or paper not in (0, "?", None)) and not (stage == "baseline" and line.given):
            parts.append(f"{stage} {ran}" + ("" if paper is None else f"/{paper}"))
    return ", ".join(parts + [f"{line['images']} images"] * (line["images"] is not None))


def reached(lines: list[Line]) -> str:
    """Our deltas, with the verdict or the epochs of the runs."""
    return "; ".join(f"{points(line['delta'])} ({line.verdict.replace('not comparable: ', '') or epochs(line)})"
                     for line in lines if line.runs) or "not run"


def standing(lines: list[Line]) -> str:
    """How a claim counts, by the lines of its row: by the weakest verdict on runs of the whole recipe; else by what
    else has run."""
    if full := [verdict.kind(line.verdict) for line in lines if line.section == "full"]:
        return max(full, key=verdict.KINDS.index)
    return next((f"{name} only" for name in ("changed", "short") if any(line.section == name for line in lines)),
                "not run")


def counted(stand: list[str]) -> str:
    """How many claims stand how; what has not been reached is said too.

    >>> counted(["not run", "short only", "not run"])
    '3 claims: 0 reproduced, 0 within x, 0 off by x, 1 short only, 2 not run'
    """
    told = [f"{stand.count(name)} {title}" for name, title in STANDINGS.items()
            if name in stand or name in verdict.KINDS[:3]]
    return f"{len(stand)} claim{'s' * (len(stand) != 1)}: {', '.join(told)}"


def all_counted(found: Collected) -> str:
    """Of all papers, in one sentence."""
    claimed = [row for row in found.rows if row.claim]
    papers = len({row.paper for row in claimed})
    told = counted([standing(found.of(row)) for row in claimed])
    return f"{papers} paper{'s' * (papers != 1)}, {told}."
