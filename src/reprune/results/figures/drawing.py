"""How figures look: plain data in, a matplotlib figure out. One column of a page wide (3.5 in) or two (7 in), 9 pt."""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from textwrap import wrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from reprune.results.styles import STYLES, style
from reprune.schema import STAGES

DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))                # with FILLED: 20 pairs before the first comes again
FILLED = ("full", "left", "bottom", "right", "top")
HATCHES = ("", "//", "\\\\", "xx", "--", "++")
FILLS = ("#0072B2", "#E69F00", "0.9", "#009E73", "#56B4E9", "0.5")                        # differ in grey as well
COLUMN, PAGE = 3.5, 7.0                                            # inches
LIGHT = "0.6"
SHARED = {"color": STYLES["baseline"][0], "marker": ""}            # curves of the baseline: rows share it
RC = {"svg.fonttype": "path", "svg.hashsalt": "reprune", "font.family": "DejaVu Sans",     # comes with matplotlib
      "font.size": 9, "axes.titlesize": 9, "figure.labelsize": 9, "legend.fontsize": 9, "legend.title_fontsize": 9,
      "legend.labelspacing": 0.3, "axes.spines.top": False, "axes.spines.right": False,
      "axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 6, "hatch.linewidth": 0.5,
      "legend.frameon": False, "figure.constrained_layout.h_pad": 0.05, "figure.constrained_layout.w_pad": 0.05}


def svg(kind: str, data: dict, metadata: dict) -> str:
    """The same bytes for the same data from one version of matplotlib, whatever the user has set."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        text = io.StringIO()
        KINDS[kind](data).savefig(text, format="svg", metadata={**metadata, "Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def folded(text: str, width: int) -> str:
    return "\n".join(wrap(text, width, break_on_hyphens=False))


def accuracy(data: dict) -> Figure:
    """points: kept, top1, std (None: one seed), label, series, ours, short; joined: is a label one line?
    baselines: top1, label, ours"""
    entries: dict[str, list[dict]] = {}
    for point in sorted(data["points"], key=lambda p: (p["series"], not p["ours"], p["label"], p["kept"])):
        entries.setdefault(point["label"], []).append(point)
    lines = sum(len(wrap(label, 36)) for label in entries) + len({base["label"] for base in data["baselines"]}) + 2
    figure = Figure(figsize=(PAGE, max(2.6, 0.3 + 0.175 * lines)), layout="constrained")
    axes, halves, (left, right) = figure.subplots(), Counter(), limits([point["kept"] for point in data["points"]])
    named: set[str] = set()
    for base in sorted(data["baselines"], key=lambda b: (not b["ours"], b["top1"])):
        label = "_" * (base["label"] in named) + base["label"]    # what begins so is not in the legend
        named.add(base["label"])
        colour, marker = STYLES["baseline"]                        # at the right end: 100 % of the MACs
        axes.axhline(100 - base["top1"], zorder=1, clip_on=False, label=label, color=LIGHT, linewidth=0.8,
                     linestyle="--" if base["ours"] else ":", marker=marker if right == 100 else "", markevery=[1],
                     markeredgecolor=colour, markerfacecolor=colour if base["ours"] else "none")
    for label, points in entries.items():
        of, (colour, marker) = points[0], style(points[0]["series"])
        face, edge = (to_rgba(colour, 0.45), LIGHT) if of["short"] else (colour, "black")
        drawn = {"markerfacecolor": "none", "markeredgecolor": colour, "markeredgewidth": 1.3, "linestyle": "none"}
        if of["ours"]:                                             # of one method: full, left half, lower half
            drawn = {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": 0.7,
                     "fillstyle": FILLED[halves[marker, edge] % len(FILLED)], "markerfacecoloralt": "white",
                     "linestyle": "-" if len(points) > 1 and data["joined"] else "none"}
            halves[marker, edge] += 1
        kept, top1, std = np.array([[p["kept"], p["top1"], p["std"]] for p in points], float).T
        error = np.maximum(100 - top1, 0.01)                       # on a logarithmic axis 100 % has a place too
        axes.errorbar(kept, error, std, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, zorder=3)
        axes.plot(kept, error, color=colour, marker=marker, linewidth=0.8, label=folded(label, 36), clip_on=False,
                  zorder=3, **drawn)
    axes.set(xlabel="MACs kept, %", ylabel="top-1, % (log of the error)", xlim=(left, right))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    by_error(axes)
    figure.legend(loc="outside right upper", handlelength=1.8, title="method: epochs of each stage", alignment="left")
    return figure


def budgets(data: dict) -> Figure:
    """panels: title, lines [{series, points [(kept, top1, std or None)]}]"""
    figure, grid = panels([{**panel, "series": "random"} for panel in data["panels"]], 2.6, "MACs kept, %",
                          "top-1, % (log of the error)")
    named: set[str] = set()
    for axes, panel, _ in grid:
        for name, points in ((line["series"], line["points"]) for line in panel["lines"]):
            (colour, marker), (kept, top1, std) = style(name), np.array(points, float).T
            axes.errorbar(kept, np.maximum(100 - top1, 0.01), std, color=colour, marker=marker, markersize=4,
                          linewidth=0.8, label="_" * (name in named) + name, zorder=3 + (name == "random"))
            named.add(name)
    grid[0][0].invert_xaxis()                                     # shared
    by_error(grid[0][0])
    figure.legend(loc="outside upper center", ncols=6 if figure.get_figwidth() == PAGE else 3, handlelength=1.6)
    return figure


def limits(kept: list[float]) -> tuple[float, float]:
    """Of the x axis: up to 100 %; where all points keep about as much, 4 % around them, else they were one column."""
    low, high = min(kept), max(kept)
    left = min(max((low + high) / 2 - 2, 0), 96)
    return (left, left + 4) if high - low < 4 else (low - 0.05 * (100 - low), 100)


def by_error(axes: Axes) -> None:
    """A y axis of errors, named by their top-1, on which 90 to 95 % is as far as 80 to 90 %: half the errors. What
    differs by tenths at the top is seen beside what has broken down."""
    axes.set_yscale("log")
    axes.invert_yaxis()
    most, least = axes.get_ylim()
    fine, middle, coarse = np.arange(1, 10, 0.5), (1, 1.5, 2, 3, 5, 7), (1, 2, 5)
    axes.yaxis.set_major_locator(LogLocator(subs=fine if most < 2 * least else middle if most < 30 * least else coarse))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda error, _: f"{100 - error:g}")


def panels(shown: list[dict], height: float, x: str, y: str) -> tuple[Figure, list[tuple[Axes, dict, str]]]:
    """Side by side in two columns, on the same axes. -> each with what it shows, and its colour"""
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(PAGE if columns == 2 else COLUMN, height * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in grid[len(shown):]:
        axes.set_axis_off()
        grid[len(shown) - columns].tick_params(labelbottom=True)   # it stands above this empty place
    for axes, panel in zip(grid, shown, strict=False):
        axes.set_title(folded(panel["title"], 44))
    figure.supxlabel(x)
    figure.supylabel(y)
    return figure, [(axes, panel, style(panel["series"])[0]) for axes, panel in zip(grid, shown, strict=False)]


def widths(data: dict) -> Figure:
    """panels: title, series, before, after, low, high (a number per layer)"""
    figure, grid = panels(data["panels"], 1.6, "layer", "filters")
    for axes, panel, colour in grid:
        layers, low, high = np.arange(1, len(panel["before"]) + 1), np.array(panel["low"]), np.array(panel["high"])
        axes.bar(layers, panel["after"], 0.9, color=colour)
        axes.stairs(panel["before"], np.arange(len(layers) + 1) + 0.5, color="black", linewidth=0.8)
        axes.vlines(layers[low < high], low[low < high], high[low < high], color="black", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, len(layers) + 1)
    return figure


def norms(data: dict) -> Figure:
    """panels: title, series, norms"""
    figure, grid = panels(data["panels"], 1.7, "L2 norm of a filter's group", "% of groups")
    positive = [norm for panel in data["panels"] for norm in panel["norms"] if norm > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive))), math.floor(math.log10(max(positive))) + 1
    for axes, panel, colour in grid:
        every = np.array(panel["norms"])
        some = every[every > 0]
        axes.hist(some, np.logspace(first, last, 5 * (last - first) + 1), weights=np.full(len(some), 100 / len(every)),
                  color=colour, edgecolor="white", linewidth=0.3)
        if zeros := len(every) - len(some):
            axes.text(0.02, 0.95, f"exactly 0: {100 * zeros / len(every):.1f} %", transform=axes.transAxes, va="top")
        axes.set_xscale("log")
    return figure


def curves(data: dict) -> Figure:
    """runs: label, series, stages {stage: {name: a number per epoch}}; runs of one label: a line and its band"""
    found = {stage for run in data["runs"] for stage in run["stages"]}
    stages = [*(stage for stage in STAGES if stage in found), *sorted(found.difference(STAGES))]
    names = {name for run in data["runs"] for means in run["stages"].values() for name in means}
    rows = {"loss": ["loss"], "top-1, %": ["val_top1", "top1"],
            **{name.replace("/", ": "): [name] for name in sorted(names - {"loss", "top1", "val_top1"})}}
    looks = apart({run["label"]: run["series"] for run in data["runs"]})
    labels = [folded(label, 42) for label in looks]
    height = 1.7 * len(rows) + 0.16 * math.ceil(sum(label.count("\n") + 1 for label in labels) / 2) + 0.3
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    grid = figure.subplots(len(rows), len(stages), sharex="col", squeeze=False)
    for row, (title, shown) in zip(grid, rows.items(), strict=True):
        for axes, stage in zip(row, stages, strict=True):
            for label, name in itertools.product(looks, shown):
                if each := [values for run in data["runs"] if run["label"] == label
                            and (values := run["stages"].get(stage, {}).get(name))]:
                    band(axes, each, SHARED if stage == "baseline" else looks[label], thin=name == "top1")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.axis("on" if axes.lines else "off")
        next(axes for axes in row if axes.lines).set_ylabel(title)
    for column, stage in zip(grid.T, stages, strict=True):
        column[0].set_title(stage)
        last = [axes for axes in column if axes.lines][-1]
        last.set_xlabel("epoch")
        last.tick_params(labelbottom=True)
    figure.align_ylabels()
    handles = [Line2D([], [], label=label, **how) for label, how in zip(labels, looks.values(), strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def apart(series: dict[str, str]) -> dict[str, dict]:
    """label -> how its line looks: as its series does; several of one differ in stroke and in the fill of the marks"""
    ordinal, looks = Counter(), {}
    for label, (colour, marker) in zip(series, map(style, series.values()), strict=True):
        number = ordinal[marker]
        looks[label] = {"color": colour, "marker": marker, "markersize": 4, "linestyle": DASHES[number % len(DASHES)],
                        "fillstyle": FILLED[number % len(FILLED)]}
        ordinal[marker] += 1
    return looks


def band(axes: Axes, each: list[list[float]], how: dict, thin: bool) -> None:
    """The mean over the runs, with a few markers, and the range they span. thin: dotted, the mean alone."""
    values = np.array([run[:min(map(len, each))] for run in each])            # [runs, epochs]
    epochs, plain = range(1, values.shape[1] + 1), {"marker": "_" if thin else how["marker"] or "o"}
    if len(epochs) == 1:                                          # no line to see: a mark, or a stroke
        axes.set_xlim(0.5, 1.5)
    else:
        plain = {"linestyle": ":", "marker": "", "linewidth": 0.9} if thin else {"markevery": max(1, len(epochs) // 8)}
    axes.plot(epochs, values.mean(0), **{**how, **plain})
    if len(each) > 1 and not thin:
        axes.fill_between(epochs, values.min(0), values.max(0), color=how["color"], alpha=0.2, linewidth=0)


def seconds(data: dict) -> Figure:
    """bars: label, stages {stage: seconds}; unit: what the axis says"""
    fullest = sorted(data["bars"], key=lambda bar: -len(bar["stages"]))
    stages = dict.fromkeys(stage for bar in fullest for stage in bar["stages"])               # in the order they ran in
    names = [folded(bar["label"], 26) for bar in data["bars"]]
    height = 0.16 * len(names) * (0.6 + max(name.count("\n") + 1 for name in names))
    figure = Figure(figsize=(COLUMN, 0.9 + height), layout="constrained")
    axes, done = figure.subplots(), np.zeros(len(names))
    looks = [*dict.fromkeys(["sparse", "prune", "recover", *stages])]      # the same in every figure
    for stage in stages:
        fill, hatch = (of[looks.index(stage) % len(of)] for of in (FILLS, HATCHES))
        values = np.array([bar["stages"].get(stage, 0.0) for bar in data["bars"]])
        axes.barh(range(len(names)), values, 0.7, done, color=fill, edgecolor="black", hatch=hatch, linewidth=0.5,
                  label=stage)
        done = done + values
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(data["unit"])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    figure.legend(loc="outside upper center", ncols=len(stages), handlelength=1.4, columnspacing=1.2)
    return figure


KINDS = {"accuracy": accuracy, "budgets": budgets, "widths": widths, "norms": norms, "curves": curves,
         "seconds": seconds}
