"""The part of a page that sets methods side by side at equal budgets, as Markdown."""

from __future__ import annotations

from statistics import fmean

from reprune.results.comparison import CONTROL, Cells, Way, looks_at, not_above, side_by_side
from reprune.results.lines import Line
from reprune.results.render.text import spread

TOLD = """\
Top-1 on the test set in percent, with {kept} % of the MACs left; over n seeds: mean ± sample standard deviation. *Looks
at*: what the criterion is given, and the epochs of sparse training before it. *Seconds* of scoring, cutting and sparse
training, the mean over the runs, on a machine that did other work meanwhile: orders of magnitude. The baseline is
{baseline:.2f}. **‡** marks what is not above random filters in the same column, **§** what has over a
point more of the MACs left than it was to have."""


def side(lines: list[Line]) -> list[str | list[dict[str, str]]]:
    """A section for each net: one table, and in a sentence what does not beat random filters. Tables are lists."""
    found = []
    for row, methods in side_by_side(lines).items():
        ways = sorted({at[0] for cells in methods.values() for at in cells})
        kept = sorted({at[1] for cells in methods.values() for at in cells}, reverse=True)
        first = next(iter(next(iter(methods.values())).values()))
        told = TOLD.format(kept=" / ".join(map(str, kept)), baseline=first["baseline_top1"])
        ranked = sorted(methods, key=lambda name: rank(methods[name], ways, kept), reverse=True)
        found += [f"## {row.split('/')[1]}", told, [entry(name, methods, ways, kept) for name in ranked],
                  sentence(methods, kept)]
    return found


def rank(cells: Cells, ways: list[Way], kept: list[int]) -> float:
    """By the way of mending that most methods have run; its mean over budgets."""
    return fmean([line["pruned_top1"] for (of, _), line in cells.items() if of == ways[min(1, len(ways) - 1)]] or [0.0])


def entry(name: str, methods: dict[str, Cells], ways: list[Way], kept: list[int]) -> dict[str, str]:
    cells, below = methods[name], not_above(methods[name], methods.get(CONTROL, {}))

    def said(at: tuple[Way, int]) -> str:
        if at not in cells:
            return "–"
        marks = "‡" * (at in below and name != CONTROL) + "§" * (100 - cells[at]["macs_drop"] > at[1] + 1)
        return f"{spread(cells[at], 'pruned_top1')} {marks}".rstrip()

    some = next(iter(cells.values()))
    seconds = [line["seconds_cut"] for line in cells.values() if line["seconds_cut"] is not None]
    shown = {of[1]: " / ".join(said((of, share)) for share in kept) for of in ways
             if any((of, share) in cells for share in kept)}
    return {"method": name, **{of[1]: shown.get(of[1], "") for of in ways}, "looks at": looks_at(some),
            "seconds": f"{fmean(seconds):.3g}" if seconds else ""}


def sentence(methods: dict[str, Cells], kept: list[int]) -> str:
    """Who is not above random filters, and where."""
    control = methods.get(CONTROL, {})
    below = {name: not_above(cells, control) for name, cells in methods.items() if name != CONTROL}
    held = {at for cells in methods.values() for at in cells if at in control}
    told = [f"{name} ({', '.join(f'{of[1]} at {share} %' for of, share in sorted(where))})"
            for name, where in below.items() if where]
    if not held or len(methods) < 2:
        return ""
    return f"**Not above random filters:** {'; '.join(told)}." if told else "**All are above random filters.**"
