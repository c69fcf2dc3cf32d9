"""Delete a committed record, and the tables say so: its line, and no other row."""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from reprune.results.lines import summary
from reprune.results.tables import tables

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = {file.stem: json.loads(file.read_text()) for file in sorted(REPOSITORY.glob("results/runs/*.json"))}

SOME = [*{record["experiment"]: key for key, record in RUNS.items()}.values()]      # one of each row


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The committed rows and records; without conf/, so that no row is composed."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(REPOSITORY / "experiments", root / "experiments")
    shutil.copytree(REPOSITORY / "results/runs", root / "results/runs")
    return root


def read(root):
    """-> {row: [its lines]}"""
    found, errors = {}, []
    for line in summary(root, errors):
        found.setdefault(line["row"], []).append(line)
    assert errors == []
    return found


@pytest.fixture(scope="module")
def whole(copy):
    return read(copy)


def without(lines, *names):
    return [{name: value for name, value in line.items() if name not in names} for line in lines]


@pytest.mark.parametrize("key", SOME)
def test_a_deleted_record_changes_the_line_it_was_in_and_nothing_else(copy, whole, key):
    (copy / f"results/runs/{key}.json").rename(copy / key)
    try:
        now = read(copy)
    finally:
        (copy / key).rename(copy / f"results/runs/{key}.json")
    row = RUNS[key]["experiment"]
    assert {name: lines for name, lines in now.items() if name != row} == {
        name: lines for name, lines in whole.items() if name != row}
    (line,) = [line for line in whole[row] if key in line["keys"].split()]
    others = [other for other in whole[row] if other is not line]             # what sets them apart may be less now
    rest = [k for k in line["keys"].split() if k != key]
    ours = [other for other in now[row] if rest and other["keys"] == " ".join(rest)]
    assert without([other for other in now[row] if other not in ours and other["seeds"]], "setting") == \
        without(others, "setting")
    if rest:
        assert ours[0]["seeds"] == line["seeds"] - 1 == len({RUNS[k]["seed"] for k in rest})
        assert ours[0]["pruned_top1"] == pytest.approx(statistics.mean(RUNS[k]["pruned"]["top1"] for k in rest))
        assert (ours[0]["pruned_top1_std"] is None) == (len(rest) == 1)
    elif not others:
        (alone,) = now[row]
        assert (alone["section"], alone["seeds"], alone["keys"], alone["pruned_top1"]) == ("not run", 0, None, None)


def test_no_file_keeps_a_number_of_a_deleted_record(copy, tmp_path):
    """The pages and tables, of the first record that is alone on its row."""
    rows = [record["experiment"] for record in RUNS.values()]
    key = next(key for key, record in RUNS.items() if rows.count(record["experiment"]) == 1)
    shutil.copytree(copy, tmp_path / "copy")
    before = tables(tmp_path / "copy", [])
    (tmp_path / f"copy/results/runs/{key}.json").unlink()
    after = tables(tmp_path / "copy", [])
    named = {file for file, text in before.items() if key in text}
    assert {Path(file).suffix for file in named} == {".md", ".csv", ".tex"}
    assert not any(key in text for text in after.values())
    assert named <= {file for file in before if before[file] != after[file]}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip()


def test_reading_records_needs_no_torch():
    """It takes seconds and half a gigabyte; tables, pages, figures, show and status do without."""
    modules = ", ".join(f"reprune.{name}" for name in (
        "results.tables", "results.figures", "results.show", "results.dashboard", "sweeps.status", "__main__"))
    heavy = "{'torch', 'pytorch_lightning', 'matplotlib'}"
    assert python(f"import sys, {modules}; sys.exit(', '.join({heavy} & {{*sys.modules}}))") == ""
