"""What is drawn is what the numbers say, and what belongs to different methods or settings can be told apart."""

import matplotlib
import pytest
from conftest import ROOT
from matplotlib.text import Text

from reprune.results.figures import drawing
from reprune.results.figures.drawing import accuracy, apart, curves, limits
from reprune.results.figures.files import build
from reprune.results.styles import STYLES, outline, style


def run(label="a", series="l1", **stages):
    return {"label": label, "series": series, "stages": {
        stage: {"loss": loss, "top1": [50 + x for x in loss], "val_top1": [40 + x for x in loss]}
        for stage, loss in stages.items()}}


def panels(*runs):
    """(row, stage) -> axes"""
    figure = curves({"runs": list(runs)})
    axes, stages = figure.axes, [a.get_title() for a in figure.axes if a.get_title()]
    return {(row, stage): axes[len(stages) * n + m] for n, row in enumerate(("loss", "top-1"))
            for m, stage in enumerate(stages)}


def test_stages_stand_in_their_order_whichever_run_has_them():
    drawn = panels(run(recover=[1.0, 2.0]), run("b", "ga", sparse=[1.0], recover=[1.0, 2.0], baseline=[3.0, 2.0]))
    assert [stage for row, stage in drawn if row == "loss"] == ["baseline", "sparse", "recover"]
    assert len(drawn["loss", "recover"].lines) == 2 and len(drawn["loss", "sparse"].lines) == 1


def test_seeds_are_a_mean_and_a_range():
    axes = panels(run(recover=[1.0, 4.0]), run(recover=[3.0, 6.0]))["loss", "recover"]
    (line,), (band,) = axes.lines, axes.collections
    assert list(line.get_ydata()) == [2.0, 5.0] and list(line.get_xdata()) == [1, 2]
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {(1, 1), (2, 4), (2, 6), (1, 3)}
    assert not panels(run(recover=[1.0, 4.0]))["loss", "recover"].collections


def test_held_out_and_training_images_differ_in_stroke():
    held_out, training = panels(run(recover=[1.0, 4.0]))["top-1", "recover"].lines
    assert (held_out.get_linestyle(), training.get_linestyle()) == ("-", ":")
    assert list(held_out.get_ydata()) == [41.0, 44.0] and list(training.get_ydata()) == [51.0, 54.0]


@pytest.mark.parametrize("stage", ["baseline", "recover"])
def test_one_epoch_is_a_mark(stage):
    axes = panels(run(**{stage: [1.0]}))["top-1", stage]
    assert [line.get_marker() not in ("", "None", None) for line in axes.lines] == [True, True]
    assert axes.get_xlim() == (0.5, 1.5)


def test_a_long_curve_has_few_markers():
    (line,) = panels(run(recover=[1.0] * 200))["loss", "recover"].lines
    assert 200 / line.get_markevery() <= 10


def test_rows_of_one_method_keep_its_look_and_differ_in_stroke_and_fill():
    looks = apart({"ga": "ga", **{f"l1-{n}": "l1" for n in range(12)}})
    rows = [look for name, look in looks.items() if name != "ga"]
    assert {(look["color"], look["marker"]) for look in rows} == {style("l1")}
    assert len({(look["linestyle"], look["fillstyle"]) for look in rows}) == 12
    assert (looks["ga"]["color"], looks["ga"]["linestyle"]) == (style("ga")[0], "-")


# ---------------------------------------------------------------- one look for a method

def test_no_two_methods_share_a_colour_or_a_marker():
    methods = [file.stem for file in (ROOT / "conf/method").glob("*.yaml")]
    looks = [style(series) for series in (*methods, "l1 from scratch")]
    assert len({outline(marker) for _, marker in looks}) == len(looks)      # on the page too
    assert len(methods) >= 8 and all(len(set(each)) == len(looks) for each in zip(*looks, strict=True))


def test_a_look_hangs_on_the_name_alone():
    assert style("sfp from scratch (control)") == style("l1 from scratch") != style("l1")
    assert style("random (control)") == style("random")
    named, others = [*STYLES.values()], [style(f"method{n}") for n in range(50)]
    assert not {marker for _, marker in others} & {marker for _, marker in named}
    assert len(set(others)) > 20 and others == [style(f"method{n}") for n in range(50)]


# ---------------------------------------------------------------- accuracy

def point(series="l1", kept=50.0, top1=90.0, std=None, ours=True, short=False):
    return {"series": series, "label": f"{series}: {kept}", "kept": kept, "top1": top1, "std": std, "ours": ours,
            "short": short}


def plotted(*points, base=93.0):
    """-> the figure, and label -> line"""
    figure = accuracy({"points": list(points), "joined": True,
                       "baselines": [{"top1": base, "label": "baseline", "ours": True}]})
    return figure, {line.get_label(): line for line in figure.axes[0].lines if line.get_label()[0] != "_"}


def test_points_have_the_look_of_their_method():
    _, lines = plotted(point(), point("ga"), point("new"), point("l1 from scratch"), point(kept=60.0, ours=False))
    for label, line in lines.items():
        series = label.split(":")[0]
        assert label == "baseline" or (line.get_color(), line.get_marker()) == style(series)
    assert lines["l1: 60.0"].get_markerfacecolor() == "none" != lines["l1: 50.0"].get_markerfacecolor()
    assert (lines["baseline"].get_markerfacecolor(), lines["baseline"].get_marker()) == STYLES["baseline"]


@pytest.mark.parametrize("kept", [(50.0, 50.0), (49.4, 50.3), (0.5, 0.6), (99.5, 99.5)])
def test_points_that_keep_as_much_are_not_squeezed_together(kept):
    low, high = limits(list(kept))
    assert high - low == 4 and 0 <= low <= min(kept) and max(kept) <= high <= 100
    figure, lines = plotted(*(point(name, at) for name, at in zip(("l1", "ga"), kept, strict=True)))
    assert figure.axes[0].get_xlim() == (low, high)
    assert (lines["baseline"].get_marker() == "h") == (high == 100)        # which stands at 100 % or nowhere


def test_points_that_keep_different_shares_are_seen_beside_the_whole_net():
    figure, _ = plotted(point(kept=30.0), point("ga", 90.0))
    low, high = figure.axes[0].get_xlim()
    assert 20 < low < 30 and high == 100


@pytest.mark.parametrize("top1", [(93.0, 93.0), (93.02, 93.08), (90.0, 94.0), (10.0, 94.0), (99.2, 100.0), (0.0, 50.0)])
def test_all_accuracies_have_a_place_and_a_few_ticks(top1):
    figure, lines = plotted(*(point(name, 50.0, at, 0.1) for name, at in zip(("l1", "ga"), top1, strict=True)),
                            base=top1[0])
    axes = figure.axes[0]
    figure.draw_without_rendering()
    most, least = axes.get_ylim()                                  # errors, the largest at the bottom
    assert all(least < line.get_ydata()[0] < most for line in lines.values())
    named = {tick: label.get_text() for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
             if least <= tick <= most}
    assert 2 <= len(named) <= 16
    assert all(float(text) == pytest.approx(100 - error, abs=0.01) for error, text in named.items())


# ---------------------------------------------------------------- can it be read?

def test_no_text_is_small_or_cut_off_or_covered_and_plots_are_larger_than_legends():
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(drawing.RC)
        for made in build(ROOT, []):
            figure = drawing.KINDS[made.kind](made.data)
            figure.draw_without_rendering()
            assert figure.get_figwidth() in (drawing.COLUMN, drawing.PAGE), made.name
            extent = figure.get_tightbbox()                        # inches
            assert extent.x0 > -0.02 and extent.x1 < figure.get_figwidth() + 0.02, made.name
            assert extent.y0 > -0.02 and extent.y1 < figure.get_figheight() + 0.02, made.name
            texts = read_by_people(figure)
            assert len(texts) > 3 and all(text.get_fontsize() >= 9 for text in texts), made.name
            boxes = [(text.get_window_extent().padded(-1), text.get_text()) for text in texts]
            legends = [legend.get_window_extent() for legend in figure.legends]
            plots = [axes.get_window_extent() for axes in figure.axes if axes.axison]
            assert sum(b.width * b.height for b in legends) < sum(b.width * b.height for b in plots), made.name
            covered = [(a, b) for i, (at, a) in enumerate(boxes) for also, b in boxes[:i] if at.overlaps(also)]
            assert not covered, (made.name, covered)


def read_by_people(figure) -> list[Text]:
    """Not the tick labels that lie beyond an axis."""
    ticks = [(tick, axis) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
             for tick in axis.get_major_ticks() + axis.get_minor_ticks()]
    labels = {label for tick, _ in ticks for label in (tick.label1, tick.label2)}
    drawn = [tick.label1 for tick, axis in ticks if axis.axes.axison and tick.label1.get_visible()
             and min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())]
    found = drawn + [text for text in figure.findobj(Text) if text not in labels and text.get_visible()
                     and (text.axes is None or text.axes.axison)]
    return [text for text in found if text.get_text().strip()]
