"""What figures show are the numbers of the records, the claims of the papers, and what sets lines apart."""

import csv
from statistics import mean, stdev

import pytest
from test_figures import DIGITS, FEW, REPOSITORY, data, project, records, small, write  # noqa: F401

from reprune.__main__ import main
from reprune.pipeline import run
from reprune.results.figures import files
from reprune.results.figures.files import build


@pytest.fixture
def root(tmp_path):
    return project(tmp_path, (*FEW, *DIGITS))


def test_committed_figures_are_what_the_committed_records_say(capsys):
    assert main(["figures", "--check", "--root", str(REPOSITORY)]) == 0, capsys.readouterr().err


def test_points_are_the_means_of_the_records_and_what_papers_print():
    runs = records(REPOSITORY)["half/resnet20-l1std"]
    (point,) = [p for p in data(REPOSITORY, "accuracy-cifar10-resnet20")["points"] if p["label"].startswith("l1std: ")]
    top1 = [r["pruned"]["top1"] for r in runs]
    assert len(runs) > 1 and point["ours"] and not point["short"]
    assert point["top1"] == pytest.approx(mean(top1)) and point["std"] == pytest.approx(stdev(top1), abs=1e-6)
    assert point["kept"] == pytest.approx(mean(100 * r["pruned"]["macs"] / r["baseline"]["macs"] for r in runs))
    shown = data(REPOSITORY, "accuracy-cifar10-resnet56")
    printed = [(p["top1"], p["kept"]) for p in shown["points"] if p["label"] == "l1: li2017 as printed"]
    table = {(93.10, 89.6), (93.06, 72.4)}                         # Table 1: 10.4 and 27.6 % of the MACs removed
    assert table <= {(top1, round(kept, 6)) for top1, kept in printed}
    assert not any(p["ours"] for p in shown["points"] if "printed" in p["label"])
    assert (93.04, False) in [(b["top1"], b["ours"]) for b in shown["baselines"]]


def test_short_runs_say_so_and_settings_do_not_mix(root):
    ours = [p for p in data(root, "accuracy-cifar10-resnet56")["points"] if p["ours"]]
    short = [p["label"] for p in ours if p["short"]]
    assert len(ours) == 4 and short == ["l1: recover 1 of 40; short"] * 2      # A and B: only the rate differs
    digits = [p["label"] for p in data(root, "accuracy-digits-resnet20")["points"]]
    assert len(set(digits)) == 2, digits                           # here the penalty does
    (record,) = records(root)["mitsuno2020/own-digits"]
    record["config"]["method"]["criterion"] = {"of": "another kind"}
    write(root, {**record, "seed": 1})
    digits = [p["label"] for p in data(root, "accuracy-digits-resnet20")["points"]]
    assert len(set(digits)) == 3, digits


def test_widths_norms_and_seconds_are_those_of_the_record(root):
    (record,), (plain,) = (records(root)[f"mitsuno2020/own-digits{end}"] for end in ("", "-plain"))
    _, panel = data(root, "widths-mitsuno2020-digits-resnet20")["panels"]
    assert [[b, a] for b, a in zip(panel["before"], panel["after"], strict=True)] == list(record["widths"].values())
    without, penalised = data(root, "norms-mitsuno2020-digits-resnet20")["panels"]
    assert without["title"].endswith("weight 0") and min(without["norms"]) > max(penalised["norms"]) / 10
    for shown, of in ((without, plain), (penalised, record)):
        assert shown["norms"] == [norm for group in of["group_norms"].values() for norm in group]
    _, bar = data(root, "seconds-mitsuno2020-digits-resnet20")["bars"]
    assert bar["stages"] == {name: record["seconds"][name] for name in ("sparse", "prune", "recover")}


def test_times_of_different_machines_are_not_averaged(root):
    (record,) = records(root)["half/resnet56-l1"]
    record["env"]["threads"] = 7
    write(root, {**record, "seed": 1, "started": "2030-01-01T00:00:00Z", "seconds": {"prune": 1.0, "recover": 2.0}})
    bars = {b["label"]: b["stages"] for b in data(root, "seconds-half-cifar10-resnet56")["bars"]}
    assert bars["resnet56-l1 on cpu, 7 threads"] == {"prune": 1.0, "recover": 2.0} and len(bars) == 3


def test_curves_of_a_run_are_those_its_logger_wrote_and_are_drawn(small, configure, tmp_path):  # noqa: F811
    record = run(configure("method=hgsr", "logger=csv", "recipe.sparse.epochs=2", "method/rounds=steps",
                           "method.rounds.n=2"))
    assert list(record["curves"]) == ["baseline", "sparse", "recover-0", "recover"]
    for stage, means in record["curves"].items():
        (file,) = (tmp_path / "outputs" / record["key"]).glob(f"{stage}/metrics.csv")
        rows = list(csv.DictReader(file.open()))
        part = stage.split("-")[0]
        logged = {name: [float(row[f"{part}/{name}"]) for row in rows] for name in means}
        assert {"loss", "top1", "val_top1"} <= set(means) and rows
        assert all(means[name] == pytest.approx(logged[name], rel=1e-4) for name in means), stage
    assert "penalty/hgsr" in record["curves"]["sparse"] and len(record["curves"]["sparse"]["loss"]) == 2
    write(small, {**record, "experiment": "mitsuno2020/own-digits"})
    (shown,) = data(small, "curves-mitsuno2020-digits-resnet8")["runs"]
    assert shown["stages"]["recover"]["loss"] == (
        record["curves"]["recover-0"]["loss"] + record["curves"]["recover"]["loss"])
    (made,) = [figure for figure in build(small, []) if figure.kind == "curves"]
    assert record["key"] in made.svg()


def test_held_out_images_that_given_weights_may_know_are_told_of(small, configure):  # noqa: F811
    record = {**run(configure("method=l1", "recipe.baseline.epochs=1")), "experiment": "mitsuno2020/own-digits"}
    told = []
    for source in ("trained here", "resnet8.th sha256:0123456789abcdef"):
        write(small, {**record, "baseline": {**record["baseline"], "source": source}})
        (caption,) = [figure.caption for figure in build(small, []) if figure.kind == "curves"]
        told.append("given may have been trained on the held-out images" in caption)
    assert told == [False, True]
    assert not any("held-out" in figure.caption for figure in build(small, []) if figure.kind != "curves")


# ---------------------------------------------------------------- controls

@pytest.fixture
def controlled(root):
    """The records of half/resnet56-l1 and -l1std become two settings of a control of li2017/resnet56-A."""
    (record,), (other,) = (records(root)[f"half/resnet56-{name}"] for name in ("l1", "l1std"))
    for key in (record["key"], other["key"]):
        (root / f"results/runs/{key}.json").unlink()
    for lr in (0.16, 0.19):
        record["config"]["recipe"]["recover"]["optimizer"]["lr"] = lr
        write(root, {**record, "experiment": "li2017/resnet56-A", "control": "random", "method": "random"})
    return root


def test_controls_are_told_from_the_row_and_stand_beside_it(controlled):
    shown = [p for p in data(controlled, "accuracy-cifar10-resnet56")["points"] if p["ours"]]
    assert [p["series"] for p in shown] == ["l1", *["random (control)"] * 2, "l1"]
    assert [p["label"].split(":")[0] for p in shown] == [p["series"] for p in shown]
    titles = [panel["title"] for panel in data(controlled, "widths-li2017-cifar10-resnet56")["panels"]]
    ends = ("A", "A, random control (lr=0.16)", "A, random control (lr=0.19)", "B")
    assert titles == [f"resnet56-{end}" for end in ends]


def test_a_row_and_its_controls_are_not_torn_apart(controlled, monkeypatch):
    monkeypatch.setattr(files, "PANELS", 3)
    widths = {figure.name: len(figure.data["panels"]) for figure in build(controlled, []) if figure.kind == "widths"}
    assert widths["widths-li2017-cifar10-resnet56"] == 3 and widths["widths-li2017-cifar10-resnet56-2"] == 1
