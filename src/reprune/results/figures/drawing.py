"""How figures look: plain data in, a matplotlib figure out. One column of a page wide (3.5 in) or two (7 in), 9 pt."""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Iterable
from textwrap import wrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from reprune.results.rows import STAGES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")   # Okabe & Ito, less yellow
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")            # as many as make other pairs when both start again
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "//", "\\\\", "xx", "--", "++")
FILLS = (COLOURS[0], COLOURS[4], "0.9", COLOURS[2], COLOURS[5], "0.5")                    # differ in grey as well
FILLED = ("full", "left", "bottom", "right", "top")
COLUMN, PAGE = 3.5, 7.0                                            # inches
LIGHT = "0.6"
SHARED = {"color": "black", "marker": ""}                          # the baseline: rows share it
STYLE = {"svg.fonttype": "path", "svg.hashsalt": "reprune", "font.family": "DejaVu Sans",     # comes with matplotlib
         "font.size": 9,
         "axes.titlesize": 9, "legend.fontsize": 9, "axes.spines.top": False, "axes.spines.right": False,
         "axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 6, "hatch.linewidth": 0.5,
         "legend.frameon": False, "figure.constrained_layout.h_pad": 0.05, "figure.constrained_layout.w_pad": 0.05}


def svg(kind: str, data: dict, metadata: dict) -> str:
    """The same bytes for the same data from one version of matplotlib, whatever the user has set."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        text = io.StringIO()
        KINDS[kind](data).savefig(text, format="svg", metadata={**metadata, "Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def look(style: int) -> dict:
    return {"color": COLOURS[style % len(COLOURS)], "marker": MARKERS[style % len(MARKERS)]}


def folded(text: str, width: int) -> str:
    return "\n".join(wrap(text, width, break_on_hyphens=False)) or text


def accuracy(data: dict) -> Figure:
    """points: kept, top1, std (None: one seed), label, style, ours, short; joined: is a label one line?
    baselines: top1, label, ours"""
    entries: dict[str, list[dict]] = {}
    for point in sorted(data["points"], key=lambda p: (p["style"], not p["ours"], p["label"], p["kept"])):
        entries.setdefault(point["label"], []).append(point)
    lines = sum(len(wrap(label, 42)) for label in entries) + len(data["baselines"]) + 1
    figure = Figure(figsize=(COLUMN, 2.6 + 0.16 * lines), layout="constrained")
    axes, handles, halves = figure.subplots(), [], Counter()
    for base in sorted(data["baselines"], key=lambda b: (not b["ours"], b["top1"])):
        drawn = {"linestyle": "--" if base["ours"] else ":", "linewidth": 0.8, "color": LIGHT}
        axes.axhline(base["top1"], zorder=1, **drawn)
        point = {"marker": "h", "markeredgecolor": "black", "markerfacecolor": "black" if base["ours"] else "none"}
        axes.plot(100, base["top1"], clip_on=False, zorder=4, **point, **drawn)
        handles.append(Line2D([], [], label=base["label"], **point, **drawn))
    for label, points in entries.items():
        of, (colour, marker) = points[0], look(points[0]["style"]).values()
        edge = colour if not of["ours"] else LIGHT if of["short"] else "black"
        drawn = {"color": colour, "marker": marker, "linewidth": 0.8, "linestyle": "none",
                 "markeredgecolor": edge, "markeredgewidth": 0.7 if of["ours"] else 1.3}
        if of["ours"]:                                             # of one method: full, left half, lower half
            half = FILLED[halves[of["style"], of["short"]] % len(FILLED)]
            halves[of["style"], of["short"]] += 1
            drawn |= {"fillstyle": half, "markerfacecoloralt": "white",
                      "markerfacecolor": to_rgba(colour, 0.45) if of["short"] else colour}
        else:
            drawn["markerfacecolor"] = "none"
        if of["ours"] and len(points) > 1 and data["joined"]:
            drawn["linestyle"] = DASHES[of["style"] % len(DASHES)]
        spread = [math.nan if p["std"] is None else p["std"] for p in points]
        axes.errorbar(*([p[name] for p in points] for name in ("kept", "top1")), spread, elinewidth=1, capsize=2.5,
                      ecolor=colour, zorder=3, **drawn)
        handles.append(Line2D([], [], label=folded(label, 42), **drawn))
    axes.set(xlabel="MACs kept, %", ylabel="top-1, % (log of the error)")
    axes.set_xlim(right=100.5)
    by_error(axes, [p["top1"] + sign * (p["std"] or 0) for p in data["points"] for sign in (-1, 1)]
             + [base["top1"] for base in data["baselines"]])
    figure.legend(handles=handles, loc="outside lower center", handlelength=1.8, labelspacing=0.3,
                  title="method: epochs of each stage", alignment="left", title_fontsize=9)
    return figure


def by_error(axes: Axes, values: Iterable[float]) -> None:
    """A y axis on which 90 to 95 % is as far as 80 to 90 %: half the errors. What differs by tenths at the top is seen
    beside what has broken down."""
    least = 0.01                                                   # of an error; 100 % has a place too

    def height(top1: float) -> float:
        return -math.log10(max(100 - top1, least))

    places = [height(min(max(value, 0), 100)) for value in values]
    low, high = min(places), max(places)
    margin = max(0.06 * (high - low), 0.01)
    low, high = max(low - margin, -2.0), min(high + margin, -math.log10(least))
    ticks: list[float] = []
    for steps in ((1, 2, 5), (3, 4, 6, 7, 8, 9), (1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5),
                  [tenth / 10 for tenth in range(10, 100)]):
        for error in (step * 10.0**power for power in (1, 0, -1, -2) for step in steps):
            at = -math.log10(error)
            if low <= at <= high and all(abs(at - height(tick)) > (high - low) / 7 for tick in ticks):
                ticks.append(round(100 - error, 3))
    axes.set_yscale("function", functions=(lambda y: -np.log10(np.maximum(100 - y, least)), lambda h: 100 - 10.0**-h))
    axes.set_ylim(100 - 10**-low, 100 - 10**-high)
    axes.yaxis.set_major_locator(FixedLocator(sorted(ticks)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Side by side in two columns, on the same axes."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(PAGE if columns == 2 else COLUMN, height * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    for axes in grid[max(count - columns, 0):count]:
        axes.tick_params(labelbottom=True)                         # also above an empty place
    return figure, grid[:count]


def widths(data: dict) -> Figure:
    """panels: title, style, before, after, low, high (a number per layer)"""
    figure, grid = panels(len(data["panels"]), 1.6)
    for axes, panel in zip(grid, data["panels"], strict=True):
        layers = range(1, len(panel["before"]) + 1)
        axes.bar(layers, panel["after"], 0.9, color=look(panel["style"])["color"])
        axes.stairs(panel["before"], [at + 0.5 for at in range(len(layers) + 1)], color="black", linewidth=0.8)
        spread = [at for at in zip(layers, panel["low"], panel["high"], strict=True) if at[1] < at[2]]
        if spread:
            axes.vlines(*zip(*spread, strict=True), color="black", linewidth=0.8)
        axes.set_title(folded(panel["title"], 44))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0, len(layers) + 1)
    figure.supxlabel("layer", fontsize=9)
    figure.supylabel("filters", fontsize=9)
    return figure


def norms(data: dict) -> Figure:
    """panels: title, style, norms"""
    figure, grid = panels(len(data["panels"]), 1.7)
    positive = [norm for panel in data["panels"] for norm in panel["norms"] if norm > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)) + 1e-9)
    bins = [10 ** (first + step / 5) for step in range(5 * max(last - first, 1) + 1)]
    for axes, panel in zip(grid, data["panels"], strict=True):
        every, zeros = panel["norms"], sum(norm == 0 for norm in panel["norms"])
        axes.hist([norm for norm in every if norm > 0], bins, weights=[100 / len(every)] * (len(every) - zeros),
                  color=look(panel["style"])["color"], edgecolor="white", linewidth=0.3)
        if zeros:
            axes.text(0.02, 0.95, f"exactly 0: {100 * zeros / len(every):.1f} %", transform=axes.transAxes, va="top")
        axes.set_title(folded(panel["title"], 44))
        axes.set_xscale("log")
    figure.supxlabel("L2 norm of a filter's group", fontsize=9)
    figure.supylabel("% of groups", fontsize=9)
    return figure


def curves(data: dict) -> Figure:
    """runs: label, style, stages {stage: {name: a number per epoch}}; runs of one label: a line and its band"""
    found = {stage for run in data["runs"] for stage in run["stages"]}
    stages = [*(stage for stage in STAGES if stage in found), *sorted(found.difference(STAGES))]
    names = {name for run in data["runs"] for means in run["stages"].values() for name in means}
    rows = {"loss": ["loss"], "top-1, %": ["val_top1", "top1"],
            **{name.replace("/", ": "): [name] for name in sorted(names - {"loss", "top1", "val_top1"})}}
    looks = apart({run["label"]: run["style"] for run in data["runs"]})
    wide, columns = (PAGE, 2 if len(looks) > 4 else 1) if len(stages) > 1 else (COLUMN, 1)
    per_line = 42 if columns > 1 or wide == COLUMN else 90
    lines = sum(len(wrap(label, per_line)) for label in looks) / columns
    figure = Figure(figsize=(wide, 1.7 * len(rows) + 0.16 * math.ceil(lines) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), len(stages), sharex="col", squeeze=False)
    for row, (title, shown) in zip(grid, rows.items(), strict=True):
        for axes, stage in zip(row, stages, strict=True):
            for label, name in itertools.product(looks, shown):
                each = [run["stages"][stage][name] for run in data["runs"] if run["label"] == label
                        and run["stages"].get(stage, {}).get(name)]
                if each:
                    band(axes, each, SHARED if stage == "baseline" else looks[label], thin=name == "top1")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if not axes.lines:
                axes.set_axis_off()
        next(axes for axes in row if axes.lines).set_ylabel(title)
    for column, stage in zip(grid.T, stages, strict=True):
        column[0].set_title(stage)
        last = [axes for axes in column if axes.lines][-1]
        last.set_xlabel("epoch")
        last.tick_params(labelbottom=True)
    figure.align_ylabels()
    figure.legend(handles=[Line2D([], [], label=folded(label, per_line), **drawn) for label, drawn in looks.items()],
                  loc="outside lower center", labelspacing=0.3, ncols=columns)
    return figure


def apart(styles: dict[str, int]) -> dict[str, dict]:
    """label -> how its line looks: as its method does; further ones of a method are dashed, in a colour nobody has"""
    free = [style for style in range(len(COLOURS) - 1) if style not in {s % len(COLOURS) for s in styles.values()}]
    looks, ordinal = {}, Counter()
    for label, style in styles.items():
        number = ordinal[style]
        looks[label] = look(free.pop(0) if number and free else style) | {
            "fillstyle": FILLED[number % len(FILLED)], "linestyle": DASHES[number % 3], "markersize": 4}
        ordinal[style] += 1
    return looks


def band(axes: Axes, each: list[list[float]], how: dict, thin: bool) -> None:
    """The mean over the runs, with a few markers, and the range they span. thin: dotted, the mean alone."""
    values = np.array([run[:min(map(len, each))] for run in each])            # [runs, epochs]
    epochs = range(1, values.shape[1] + 1)
    if len(epochs) == 1:                                          # no line to see: a mark, or a stroke
        plain = {"marker": "_" if thin else how["marker"] or "o"}
        axes.set_xlim(0.5, 1.5)
    else:
        plain = {"linestyle": ":", "marker": "", "linewidth": 0.9} if thin else {"markevery": max(1, len(epochs) // 8)}
    axes.plot(epochs, values.mean(0), **{**how, **plain})
    if len(each) > 1 and not thin:
        axes.fill_between(epochs, values.min(0), values.max(0), color=how["color"], alpha=0.2, linewidth=0)


def seconds(data: dict) -> Figure:
    """bars: label, stages {stage: seconds}; unit: what the axis says"""
    fullest = sorted(data["bars"], key=lambda bar: -len(bar["stages"]))
    stages = list(dict.fromkeys(stage for bar in fullest for stage in bar["stages"]))      # in the order they ran in
    names = [folded(bar["label"], 26) for bar in data["bars"]]
    height = 0.16 * len(names) * (0.6 + max(len(name.split("\n")) for name in names))
    figure = Figure(figsize=(COLUMN, 0.9 + height), layout="constrained")
    axes, done = figure.subplots(), [0.0] * len(names)
    for number, stage in enumerate(stages):
        values = [bar["stages"].get(stage, 0.0) for bar in data["bars"]]
        axes.barh(range(len(names)), values, 0.7, done, color=FILLS[number % len(FILLS)], edgecolor="black",
                  hatch=HATCHES[number % len(HATCHES)], linewidth=0.5, label=stage)
        done = [a + b for a, b in zip(done, values, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(data["unit"])
    axes.xaxis.set_major_locator(MaxNLocator(4))
    figure.legend(loc="outside upper center", ncols=len(stages), handlelength=1.4, columnspacing=1.2)
    return figure


KINDS = {"accuracy": accuracy, "widths": widths, "norms": norms, "curves": curves, "seconds": seconds}
