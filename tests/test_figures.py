"""Figures say which numbers they were drawn from, and lie there for the pages as long as records hold these."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reprune.__main__ import main
from reprune.results.figures import drawing
from reprune.results.figures.files import build, for_page, told
from reprune.runs.store import key_of

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
    """Under the key that its config and seed have."""
    config = {**record["config"], "seed": record["seed"]}
    key = key_of(config)
    (root / f"results/runs/{key}.json").write_text(json.dumps({**record, "config": config, "key": key}))


def project(folder: Path, names: tuple[str, ...]) -> Path:
    """All the rows of three papers and one record for some of them."""
    for paper in ("li2017", "half", "mitsuno2020"):
        shutil.copytree(REPOSITORY / "experiments" / paper, folder / "experiments" / paper)
    shutil.copy(REPOSITORY / "experiments/papers.yaml", folder / "experiments")
    (folder / "results/runs").mkdir(parents=True)
    for name, runs in records(REPOSITORY).items():
        if name in names:
            write(folder, runs[0])
    return folder


@pytest.fixture
def small(tmp_path):
    """Four figures."""
    return project(tmp_path, FEW[1:])


def data(root: Path, name: str, errors: list | None = None) -> dict:
    return {figure.name: figure.data for figure in build(root, [] if errors is None else errors)}[name]


def drawn(root: Path) -> dict[str, str]:
    return {file.stem: file.read_text() for file in (root / "results/figures").glob("*.svg")}


def test_a_figure_is_the_same_bytes_whatever_the_user_has_set(small, tmp_path_factory):
    assert main(["figures", "--root", str(small)]) == 0
    first, rc = drawn(small), tmp_path_factory.mktemp("rc") / "matplotlibrc"
    rc.write_text("font.size: 20\nsvg.fonttype: none\nlines.linewidth: 9\n")
    shutil.rmtree(small / "results/figures")
    subprocess.run([sys.executable, "-m", "reprune", "figures", "--root", small], check=True,
                   env={**os.environ, "PYTHONHASHSEED": "3", "MATPLOTLIBRC": str(rc)})
    assert first and drawn(small) == first


def test_without_a_record_figures_change_or_go(small, capsys):
    assert main(["figures", "--root", str(small)]) == 0 and main(["figures", "--root", str(small), "--check"]) == 0
    before = drawn(small)
    (small / "results/figures/by-hand.svg").write_text("<svg/>")
    gone = [record["key"] for name, runs in records(small).items() if name.startswith("li2017/") for record in runs]
    for key in gone:
        (small / f"results/runs/{key}.json").unlink()
    assert main(["figures", "--root", str(small), "--check"]) == 1
    error = capsys.readouterr().err
    assert "results/figures/widths-li2017-cifar10-resnet56.svg shows what no record holds: run make figures" in error
    assert "results/figures/accuracy-cifar10-resnet56.svg was drawn from other numbers" in error
    assert "widths-half" not in error
    assert main(["figures", "--root", str(small)]) == 0 and main(["figures", "--root", str(small), "--check"]) == 0
    after = drawn(small)
    assert before.keys() - after.keys() == {"widths-li2017-cifar10-resnet56"}
    assert after["by-hand"] == "<svg/>"
    assert after["accuracy-cifar10-resnet56"] != before["accuracy-cifar10-resnet56"]
    assert all(key in before["accuracy-cifar10-resnet56"] and key not in "".join(after.values()) for key in gone)


def test_the_check_sees_edits_and_forgives_another_matplotlib(small, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(drawing.RC, "axes.linewidth", 0.7)        # letters and lines lie elsewhere, the numbers do not
        main(["figures", "--root", str(small)])
    other = drawn(small)
    assert main(["figures", "--root", str(small), "--check"]) == 0
    main(["figures", "--root", str(small)])
    assert drawn(small) != other and drawn(small).keys() == other.keys()
    file = small / "results/figures/accuracy-cifar10-resnet56.svg"
    file.write_text(re.sub(r"(?<=d=\"M )\d", "9", file.read_text()))
    assert main(["figures", "--root", str(small), "--check"]) == 1
    assert "accuracy-cifar10-resnet56.svg was changed after it was drawn" in capsys.readouterr().err
    file.write_text(file.read_text()[:-100])
    assert main(["figures", "--root", str(small), "--check"]) == 1 and main(["figures", "--root", str(small)]) == 0
    file.unlink()
    assert main(["figures", "--root", str(small), "--check"]) == 1 and "is missing" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [
    ("widths", {"conv1": [16]}), ("widths", {"conv1": [16, 0]}), ("widths", [3]), ("widths", {"conv1": 3}),
    ("seconds", {"prune": -1}), ("seconds", {"prune": "fast"}),
    ("curves", {"sparse": [1.0]}), ("curves", {"sparse": {"loss": [float("nan")]}})])
def test_a_record_with_a_field_that_cannot_be_drawn_is_named_and_the_rest_is_drawn(small, name, value):
    (record,) = records(small)["half/resnet56-l1"]
    write(small, {**record, name: value})
    errors: list[str] = []
    assert "accuracy-cifar10-resnet56" in {figure.name for figure in build(small, errors)}
    assert len(errors) == 1 and errors[0].startswith(f"results/runs/{record['key']}.json: {name}")
    assert "resnet56-l1std" in str(data(small, "widths-half-cifar10-resnet56"))


def test_a_file_that_is_no_record_stops_nothing(small, capsys):
    (record,) = records(small)["half/resnet56-l1"]
    (small / f"results/runs/{record['key']}.json").write_text("{")
    assert main(["figures", "--root", str(small)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: results/runs/{record['key']}.json: ") and error.count("\n") == 1
    assert {"widths-half-cifar10-resnet56", "accuracy-cifar10-resnet56"} <= drawn(small).keys()


def test_nothing_to_show(tmp_path):
    (tmp_path / "experiments").mkdir()
    main(["figures", "--root", str(tmp_path)])
    assert not drawn(tmp_path) and for_page(tmp_path, "half") == []


def test_seconds_are_of_runs_that_were_alone(small):
    records_of = records(small)
    (one,), (other,) = records_of["half/resnet56-l1"], records_of["half/resnet56-l1std"]
    bars = data(small, "seconds-half-cifar10-resnet56")["bars"]
    assert [bar["stages"]["recover"] for bar in bars] == [run["seconds"]["recover"] for run in (one, other)]
    write(small, {**other, "seed": 1, "started": "2030-01-01T00:00:00Z"})
    for seed, started in ((2, other["started"]), (3, "yesterday")):
        write(small, {**one, "seed": seed, "started": started, "seconds": {"recover": 100.0}})
    assert data(small, "seconds-half-cifar10-resnet56")["bars"] == bars         # the second l1std takes as long


def test_pages_find_their_figures_without_a_record(small, tmp_path_factory):
    main(["figures", "--root", str(small)])
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
    assert main(["tables", "--root", str(small)]) == 0
    assert "## Figures" not in (small / "results/li2017.md").read_text()
    assert main(["figures", "--root", str(small)]) == 0 and main(["tables", "--root", str(small)]) == 0
    links = re.findall(r"!\[.+\]\((.+)\)", (small / "results/li2017.md").read_text())
    assert links == ["figures/accuracy-cifar10-resnet56.svg", "figures/widths-li2017-cifar10-resnet56.svg"]
    assert all((small / "results" / link).is_file() for link in links)


def test_what_was_changed_by_hand_is_on_no_page(small):
    main(["figures", "--root", str(small)])
    file = small / "results/figures/widths-half-cifar10-resnet56.svg"
    for text in (file.read_text().replace("#009e73", "#ff0000"), file.read_text()[:-100]):
        file.write_text(text)
        assert "figures/" + file.name not in dict(for_page(small, "half"))
    main(["figures", "--root", str(small)])
    assert "figures/" + file.name in dict(for_page(small, "half"))


def test_many_lines_are_spread_over_several_figures_and_share_a_legend(small):
    (record,) = records(small)["half/resnet56-l1"]
    for number in range(30):
        record["config"]["method"]["criterion"]["p"] = 2 + number
        write(small, record)
    shown = {figure.name: figure for figure in build(small, [])}
    widths = [len(figure.data["panels"]) for name, figure in shown.items() if name.startswith("widths-half")]
    assert len(widths) == 3 and sum(widths) == 32 and max(widths) <= 12
    points = shown["accuracy-cifar10-resnet56"].data["points"]
    ours = [point for point in points if point["ours"]]
    assert {p["label"] for p in ours if not p["short"]} == {"l1: several settings", "l1std: several settings"}
    assert "l1: li2017 as printed" in {point["label"] for point in points}
    assert len(ours) == 33 and [p["label"] for p in points if p["short"]] == ["l1: several settings, short"]
    assert shown["accuracy-cifar10-resnet56"].svg()
