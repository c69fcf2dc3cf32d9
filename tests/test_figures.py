"""Figures show what the records hold, in a form that can be read, and say which numbers they were drawn from."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import matplotlib
import pytest
from matplotlib.text import Text

from reprune.pipeline import run
from reprune.results import tables
from reprune.results.figures import drawing, files, numbers
from reprune.results.figures.files import build, for_page, main, told
from reprune.results.lines import summary

REPOSITORY = Path(__file__).resolve().parents[1]
FEW = ("li2017/resnet56-A", "li2017/resnet56-B", "half/resnet56-l1", "half/resnet56-l1std")
DIGITS = ("mitsuno2020/own-digits", "mitsuno2020/own-digits-plain")


def records(root: Path) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for file in sorted(root.glob("results/runs/*.json")):
        record = json.loads(file.read_text())
        found.setdefault(record["experiment"], []).append(record)
    return found


def write(root: Path, record: dict) -> None:
    (root / f"results/runs/{record['key']}.json").write_text(json.dumps(record))


def project(folder: Path, names: tuple[str, ...]) -> Path:
    """All the rows of this project and one record for some of them."""
    shutil.copytree(REPOSITORY / "experiments", folder / "experiments")
    (folder / "results/runs").mkdir(parents=True)
    for name, runs in records(REPOSITORY).items():
        if name in names:
            write(folder, runs[0])
    return folder


@pytest.fixture
def root(tmp_path):
    return project(tmp_path, (*FEW, *DIGITS))


@pytest.fixture
def small(tmp_path):
    """Four figures."""
    return project(tmp_path, FEW[1:])


def data(root: Path, name: str, errors: list | None = None) -> dict:
    return {figure.name: figure.data for figure in build(root, [] if errors is None else errors)}[name]


def drawn(root: Path) -> dict[str, str]:
    return {file.stem: file.read_text() for file in (root / "results/figures").glob("*.svg")}


# ---------------------------------------------------------------- the numbers

def test_committed_figures_are_what_the_committed_records_say(capsys):
    assert main(["--check", "--root", str(REPOSITORY)]) == 0, capsys.readouterr().err


def test_points_are_the_means_of_the_records_and_what_papers_print():
    runs = records(REPOSITORY)["half/resnet20-ga"]
    (point,) = [p for p in data(REPOSITORY, "accuracy-cifar10-resnet20")["points"] if p["label"].startswith("ga: ")]
    top1 = [r["pruned"]["top1"] for r in runs]
    assert len(runs) > 1 and f"{len(runs)} seeds" in point["label"] and point["ours"] and not point["short"]
    assert point["top1"] == pytest.approx(mean(top1)) and point["std"] == pytest.approx(stdev(top1))
    assert point["kept"] == pytest.approx(mean(100 * r["pruned"]["macs"] / r["baseline"]["macs"] for r in runs))
    shown = data(REPOSITORY, "accuracy-cifar10-resnet56")
    printed = [(p["top1"], pytest.approx(p["kept"])) for p in shown["points"] if p["label"] == "l1: li2017 as printed"]
    assert printed == [(93.10, 89.6), (93.06, 72.4)]               # Table 1: 10.4 and 27.6 % of the MACs removed
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
    write(root, {**record, "key": "f" * 16, "seed": 1})
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
    write(root, {**record, "key": "e" * 16, "seed": 1, "seconds": {"prune": 1.0, "recover": 2.0}})
    bars = {b["label"]: b["stages"] for b in data(root, "seconds-half-cifar10-resnet56")["bars"]}
    assert bars["resnet56-l1 on cpu, 7 threads"] == {"prune": 1.0, "recover": 2.0} and len(bars) == 3


def test_curves_of_a_run_are_those_its_logger_wrote_and_are_drawn(small, configure, tmp_path):
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


def test_held_out_images_that_given_weights_may_know_are_told_of(small, configure):
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
def controlled(root, monkeypatch):
    """resnet56-l1 and -l1std as two settings of a control of resnet56-A, as the lines of the tables name it."""
    def of(entry):
        if not entry["row"].startswith("half/resnet56-l1") or not entry["keys"]:
            return {**entry, "control": None}
        claim = {name: row[name] for name in row if name.startswith("claim_")}
        return {**entry, **claim, "row": row["row"], "paper": "li2017", "control": "random", "method": "random",
                "setting": f"a.b={len(entry['row'])}"}

    entries = summary(root, [])
    (row,) = [entry for entry in entries if entry["row"] == "li2017/resnet56-A"]
    entries = sorted(map(of, entries), key=lambda entry: (entry["row"], entry["control"] or ""))
    monkeypatch.setattr(numbers, "summary", lambda *_: entries)
    return root


def test_controls_are_told_from_the_row_and_stand_beside_it(controlled):
    shown = data(controlled, "accuracy-cifar10-resnet56")["points"]
    assert [p["series"] for p in shown] == ["l1", *["random (control)"] * 2, "l1", "l1", "l1"]
    assert [p["label"] for p in shown if not p["ours"]] == ["l1: li2017 as printed"] * 2
    assert {p["label"].split(":")[0] for p in shown} == {"l1", "random (control)"}
    titles = [panel["title"] for panel in data(controlled, "widths-li2017-cifar10-resnet56")["panels"]]
    assert titles == [f"resnet56-{end}" for end in ("A", "A, random control (b=16)", "A, random control (b=19)", "B")]


def test_a_row_and_its_controls_are_not_torn_apart(controlled, monkeypatch):
    monkeypatch.setattr(files, "PANELS", 3)
    widths = {figure.name: len(figure.data["panels"]) for figure in build(controlled, []) if figure.kind == "widths"}
    assert widths["widths-li2017-cifar10-resnet56"] == 3 and widths["widths-li2017-cifar10-resnet56-2"] == 1


# ---------------------------------------------------------------- the files

def test_a_figure_is_the_same_bytes_whatever_the_user_has_set(small, tmp_path_factory):
    assert main(["--root", str(small)]) == 0
    first, rc = drawn(small), tmp_path_factory.mktemp("rc") / "matplotlibrc"
    rc.write_text("font.size: 20\nsvg.fonttype: none\nlines.linewidth: 9\n")
    shutil.rmtree(small / "results/figures")
    subprocess.run([sys.executable, "-m", "reprune", "figures", "--root", small], check=True,
                   env={**os.environ, "PYTHONHASHSEED": "3", "MATPLOTLIBRC": str(rc)})
    assert first and drawn(small) == first


def test_without_a_record_figures_change_or_go(small, capsys):
    assert main(["--root", str(small)]) == 0 and main(["--root", str(small), "--check"]) == 0
    before = drawn(small)
    (small / "results/figures/by-hand.svg").write_text("<svg/>")
    gone = [record["key"] for name, runs in records(small).items() if name.startswith("li2017/") for record in runs]
    for key in gone:
        (small / f"results/runs/{key}.json").unlink()
    assert main(["--root", str(small), "--check"]) == 1
    error = capsys.readouterr().err
    assert "results/figures/widths-li2017-cifar10-resnet56.svg shows what no record holds: run make figures" in error
    assert "results/figures/accuracy-cifar10-resnet56.svg was drawn from other numbers" in error
    assert "widths-half" not in error
    assert main(["--root", str(small)]) == 0 and main(["--root", str(small), "--check"]) == 0
    after = drawn(small)
    assert before.keys() - after.keys() == {"widths-li2017-cifar10-resnet56"}
    assert after["by-hand"] == "<svg/>"
    assert after["accuracy-cifar10-resnet56"] != before["accuracy-cifar10-resnet56"]
    assert all(key in before["accuracy-cifar10-resnet56"] and key not in "".join(after.values()) for key in gone)


def test_the_check_sees_edits_and_forgives_another_matplotlib(small, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(drawing.RC, "axes.linewidth", 0.7)        # letters and lines lie elsewhere, the numbers do not
        main(["--root", str(small)])
    other = drawn(small)
    assert main(["--root", str(small), "--check"]) == 0
    main(["--root", str(small)])
    assert drawn(small) != other and drawn(small).keys() == other.keys()
    file = small / "results/figures/accuracy-cifar10-resnet56.svg"
    file.write_text(re.sub(r"(?<=d=\"M )\d", "9", file.read_text()))
    assert main(["--root", str(small), "--check"]) == 1
    assert "accuracy-cifar10-resnet56.svg was changed after it was drawn" in capsys.readouterr().err
    file.write_text(file.read_text()[:-100])
    assert main(["--root", str(small), "--check"]) == 1 and main(["--root", str(small)]) == 0
    file.unlink()
    assert main(["--root", str(small), "--check"]) == 1 and "is missing" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value", "kind"), [
    ("widths", {"conv1": [16]}, "widths-half"), ("widths", {"conv1": [16, 0]}, "widths-half"),
    ("widths", [3], "widths-half"), ("widths", {"conv1": 3}, "widths-half"),
    ("seconds", {"prune": -1}, "seconds-half"), ("seconds", {"prune": "fast"}, "seconds-half"),
    ("curves", {"sparse": [1.0]}, "curves-half"), ("curves", {"sparse": {"loss": [float("nan")]}}, "curves-half")])
def test_a_field_that_cannot_be_drawn_is_named_and_the_rest_is_drawn(small, name, value, kind):
    names = {figure.name for figure in build(small, [])}
    (record,) = records(small)["half/resnet56-l1"]
    write(small, {**record, name: value})
    errors: list[str] = []
    left = {figure.name for figure in build(small, errors)}
    assert len(errors) == 1 and errors[0].startswith(f"results/runs/{record['key']}.json: {name} must be {{")
    assert all(lost.startswith(kind) for lost in names - left)
    assert "resnet56-l1std" in str(data(small, "widths-half-cifar10-resnet56"))


def test_a_file_that_is_no_record_stops_nothing(small, capsys):
    (record,) = records(small)["half/resnet56-l1"]
    (small / f"results/runs/{record['key']}.json").write_text("{")
    assert main(["--root", str(small)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: results/runs/{record['key']}.json: ") and error.count("\n") == 1
    assert {"widths-half-cifar10-resnet56", "accuracy-cifar10-resnet56"} <= drawn(small).keys()


def test_nothing_to_show(tmp_path):
    (tmp_path / "experiments").mkdir()
    main(["--root", str(tmp_path)])
    assert not drawn(tmp_path) and for_page(tmp_path, "half") == []


def test_pages_find_their_figures_without_a_record(small, tmp_path_factory):
    main(["--root", str(small)])
    bare = tmp_path_factory.mktemp("bare")
    shutil.copytree(small / "results/figures", bare / "results/figures")
    (bare / "results/figures/accuracy-damaged.svg").write_text("<svg")
    found = for_page(bare, "half")
    assert [Path(name).stem for name, _ in found] == [
        "accuracy-cifar10-resnet56", "widths-half-cifar10-resnet56", "seconds-half-cifar10-resnet56"]
    assert all((bare / "results" / name).is_file() and "resnet56 on cifar10" in caption for name, caption in found)
    assert [name for name, _ in found][:1] == [name for name, _ in for_page(bare, "li2017")][:1]
    assert for_page(bare, "sun2019") == []
    key = records(small)["half/resnet56-l1"][0]["key"]
    about = told(bare / "results" / found[1][0])
    assert about["whole"] and key in (bare / "results" / found[1][0]).read_text()


def test_a_page_shows_its_figures_once_they_are_drawn(small):
    assert tables.main(["--root", str(small)]) == 0
    assert "## Figures" not in (small / "results/li2017.md").read_text()
    assert main(["--root", str(small)]) == 0 and tables.main(["--root", str(small)]) == 0
    links = re.findall(r"!\[.+\]\((.+)\)", (small / "results/li2017.md").read_text())
    assert links == ["figures/accuracy-cifar10-resnet56.svg", "figures/widths-li2017-cifar10-resnet56.svg"]
    assert all((small / "results" / link).is_file() for link in links)


def test_what_was_changed_by_hand_is_on_no_page(small):
    main(["--root", str(small)])
    file = small / "results/figures/widths-half-cifar10-resnet56.svg"
    for text in (file.read_text().replace("#009e73", "#ff0000"), file.read_text()[:-100]):
        file.write_text(text)
        assert "figures/" + file.name not in dict(for_page(small, "half"))
    main(["--root", str(small)])
    assert "figures/" + file.name in dict(for_page(small, "half"))


def test_many_lines_are_spread_over_several_figures_and_share_a_legend(small):
    (record,) = records(small)["half/resnet56-l1"]
    for number in range(30):
        record["config"]["method"]["criterion"]["p"] = 2 + number
        write(small, {**record, "key": f"{number:016x}"})
    shown = {figure.name: figure for figure in build(small, [])}
    widths = [len(figure.data["panels"]) for name, figure in shown.items() if name.startswith("widths-half")]
    assert len(widths) == 3 and sum(widths) == 32 and max(widths) <= 12
    points = shown["accuracy-cifar10-resnet56"].data["points"]
    assert {point["label"] for point in points if not point["short"]} == {
        "l1: several settings", "l1std: several settings", "l1: li2017 as printed"}
    assert len(points) == 35 and [p["label"] for p in points if p["short"]] == ["l1: several settings, short"]
    assert shown["accuracy-cifar10-resnet56"].svg()


# ---------------------------------------------------------------- can it be read?

def test_no_text_is_small_or_cut_off_or_covered_and_plots_are_larger_than_legends():
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(drawing.RC)
        for made in build(REPOSITORY, []):
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
