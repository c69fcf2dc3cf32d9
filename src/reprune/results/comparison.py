"""Methods side by side at equal budgets: the lines of a folder whose rows are nets (`compare: true` in papers.yaml).

A cell is a method at a share of the MACs, mended in one way: not at all, by new BN statistics, by epochs of recovery.
It is held against random filters in the same cell."""

from __future__ import annotations

from collections import defaultdict

from reprune.results.lines import Line

CONTROL = "random"
Way = tuple[int, str]                   # of mending: rank, name
Cells = dict[tuple[Way, int], Line]     # (way, percent of the MACs kept) -> line


def way(line: Line) -> Way:
    epochs = line["epochs_recover"]
    if epochs:
        return 1 + epochs, f"{epochs} epoch{'s' * (epochs != 1)} of recovery"
    return (1, "new BN statistics") if "method.repair.recalibrate.images" in line.config else (0, "cut alone")


def side_by_side(lines: list[Line]) -> dict[str, dict[str, Cells]]:
    """-> {row: {method: its cells}}, methods by name"""
    found: dict[str, dict[str, Cells]] = defaultdict(lambda: defaultdict(dict))
    for line in sorted(lines, key=lambda line: line.series):
        budget = line.config.get("method.allocation.macs")
        if line.runs and not line.control and budget:
            found[line.row.id][line.series][way(line), round(100 * budget)] = line
    return found


def not_above(cells: Cells, control: Cells) -> list[tuple[Way, int]]:
    """Where a method has run and random filters have, and its mean is not above theirs."""
    return [at for at, line in cells.items() if at in control and line["pruned_top1"] <= control[at]["pruned_top1"]]


def looks_at(line: Line) -> str:
    """What the criterion is given, by its options."""
    options = {name.removeprefix("method.criterion."): value for name, value in line.config.items()}
    images = options.get("n_samples") or options.get("n_examples") or (
        (options.get("batches") or 0) * (options.get("batch_size") or 0))
    trained = f", {line['epochs_sparse']} epochs" * bool(line["epochs_sparse"])
    return (f"{images:,} images" if images else "weights") + trained


def panels(lines: list[Line]) -> list[dict]:
    """What the figure shows: a panel for each net and way of mending."""
    shown = []
    for row, methods in side_by_side(lines).items():
        for of in sorted({at[0] for cells in methods.values() for at in cells}):
            each = {name: sorted((100 - line["macs_drop"], line["pruned_top1"], line["pruned_top1_std"])
                                 for (mended, _), line in cells.items() if mended == of)
                    for name, cells in methods.items()}
            shown.append({"title": f"{row.split('/')[1]}: {of[1]}",
                          "lines": [{"series": name, "points": points} for name, points in each.items() if points]})
    return shown
