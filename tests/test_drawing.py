"""Training curves: what is drawn is the mean over the seeds and their range, and lines can be told apart."""

import pytest

from reprune.results.figures.drawing import COLOURS, apart, curves


def run(label="a", style=0, **stages):
    return {"label": label, "style": style, "stages": {
        stage: {"loss": loss, "top1": [50 + x for x in loss], "val_top1": [40 + x for x in loss]}
        for stage, loss in stages.items()}}


def panels(*runs):
    """(row, stage) -> axes"""
    figure = curves({"runs": list(runs)})
    axes, stages = figure.axes, [a.get_title() for a in figure.axes if a.get_title()]
    return {(row, stage): axes[len(stages) * n + m] for n, row in enumerate(("loss", "top-1"))
            for m, stage in enumerate(stages)}


def test_stages_stand_in_their_order_whichever_run_has_them():
    drawn = panels(run(recover=[1.0, 2.0]), run("b", 1, sparse=[1.0], recover=[1.0, 2.0], baseline=[3.0, 2.0]))
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


def test_rows_of_one_method_differ_in_colour_as_long_as_there_are_colours_and_else_in_stroke():
    looks = apart({"ga": 0, "l1-A": 2, "l1-B": 2, "l1-C": 2})
    assert len({look["color"] for look in looks.values()}) == 4 and looks["l1-A"]["color"] == COLOURS[2]
    assert len({look["linestyle"] for name, look in looks.items() if name != "ga"}) == 3
    crowded = apart({f"{style}-{n}": style for style in range(7) for n in range(3)})
    assert len({(look["color"], look["linestyle"]) for look in crowded.values()}) == 21
