"""`reprune compare`: what finished cells reach, at which cost, over their seeds; and whether they are a match."""

import csv
import io
import json
import os
import subprocess
import sys

import command
import pytest
from conftest import EPOCHS, TINY
from project import project, record

from reprune.__main__ import main
from reprune.results.compare import lines_of, records_in, unequal


@pytest.fixture
def runs(tmp_path):
    """runs(("l1", 0, 92.0, 1000), ...) -> folder with records: method, seed, top-1, MACs kept of 2000"""
    root = project(tmp_path)

    def written(*cells, **changes):
        for method, seed, top1, macs in cells:
            of = {"name": method, "allocation": {"rates": {"1": 0.5}}}
            record(root, seed=seed, top1=top1, method=method, config__method=of, config__seed=seed,
                   pruned__macs=macs, experiment=None, **changes)
        return root / "results"

    return written


def test_seeds_are_averaged_and_cells_stand_side_by_side(runs, capsys):
    folder = runs(("l1", 0, 92.0, 1000), ("l1", 1, 91.0, 1000), ("random", 0, 90.0, 1004))
    assert main(["compare", str(folder)]) == 0
    head, _, l1, random = capsys.readouterr().out.splitlines()
    assert head.split() == ["cell", "seeds", "baseline", "top-1", "top-1", "delta", "MACs", "params", "speed-up"]
    assert l1.split("  ")[0] == "method=l1" and "91.50 ± 0.71" in l1 and "-1.50 ± 0.71" in l1 and "1.60x" in l1
    assert "1.0 k (-50.0 %)" in l1 and "750 (-25.0 %)" in l1 and l1.split()[1] == "2"
    assert random.split()[:2] == ["method=random", "1"] and "90.00  " in random and "±" not in random


def test_other_forms_hold_the_same(runs, capsys):
    folder = runs(("l1", 0, 92.0, 1000), ("random", 0, 90.0, 1000))
    assert main(["compare", "--md", str(folder)]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert rows[0][0] == "cell" and [row[0] for row in rows[2:]] == ["method=l1", "method=random"]
    assert main(["compare", "--csv", str(folder)]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["setting"], row["pruned_top1"], row["macs_pruned"], row["seeds"]) for row in table] == [
        ("method=l1", "92", "1000", "1"), ("method=random", "90", "1000", "1")]


def test_cells_at_other_macs_are_named_and_what_removes_nothing_is_not_one(runs, capsys):
    folder = runs(("baseline", 0, 93.0, 2000), ("hgsr", 0, 92.0, 500), ("l1", 0, 91.0, 1000), ("random", 0, 90.0, 1001))
    assert main(["compare", str(folder)]) == 0
    *_, said = capsys.readouterr().out.splitlines()
    assert said.startswith("not at the same MACs on net, cifar10: ") and "method.allocation.macs=" in said
    assert "25.0 % by method=hgsr" in said and "baseline" not in said
    folder.joinpath("runs").rename(folder / "all")
    runs(("l1", 0, 91.0, 1000), ("random", 0, 90.0, 1001))
    assert unequal(lines_of(records_in(folder), [])) == []


def test_cells_of_one_method_are_told_apart_by_what_they_set(runs, tmp_path):
    folder = runs(("l1", 0, 92.0, 1000))
    runs(("l1", 0, 92.0, 1000), config__recipe={"name": "some2020", "recover": {"epochs": 9, "lr": 0.001}})
    said = {line.setting for line in lines_of(records_in(folder), [])}
    assert said == {"method=l1 recipe.recover.epochs=9", "method=l1 recipe.recover.epochs=40"}


def test_a_bad_record_is_one_line_and_the_rest_is_compared(runs, capsys):
    folder = runs(("l1", 0, 92.0, 1000))
    (folder / "runs/bad.json").write_text("{")
    assert main(["compare", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "method=l1" in out and err.startswith(f"error: {folder}/runs/bad.json: ") and err.count("\n") == 1


def test_nothing_to_compare_and_what_does_not_compose_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given, told in (([], "nothing has finished of outputs"), (["method=l1"], "nothing has finished of method=l1"),
                        (["-m", "method=l11,random"], "did you mean 'l1'?"),
                        (["nowhere"], "nowhere")):
        assert main(["compare", *given]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err, err


def test_a_sweep_ends_with_it_and_the_first_failure_can_end_a_sweep(root, tmp_path, capsys, monkeypatch):
    cells = [*TINY, *EPOCHS, "method=l1", "method.allocation.rate=0.01,0.5,0.25", "seed=0"]    # at 0.01 nothing goes
    first = command.run("-m", *cells, "fail_fast=true", cwd=tmp_path)
    assert first.returncode == 1 and first.stdout.count("not begun, as a cell has failed") == 2
    assert not list(tmp_path.glob("outputs/*/record.json")) and "1 failed, 2 without a record" in first.stdout

    whole = command.run("-m", *cells, cwd=tmp_path)
    records = [json.loads(file.read_text()) for file in tmp_path.glob("outputs/*/record.json")]
    assert whole.returncode == 1 and len(records) == 2, whole.stderr
    assert "not at the same MACs on resnet8, digits" in whole.stdout
    assert f"records and nets are in {tmp_path / 'outputs'}\n" in whole.stdout
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *cells, "-m"]) == 0
    said = capsys.readouterr().out
    assert said.strip() in whole.stdout
    for one in records:
        cell = f"method=l1 method.allocation.rate={one['config']['method']['allocation']['rate']} "
        (line,) = (line for line in said.splitlines() if line.startswith(cell))
        left = 100 - 100 * one["pruned"]["macs"] / one["baseline"]["macs"]
        assert f"{one['pruned']['top1']:.2f}" in line and f"{left:.1f} %" in line


def test_a_finished_run_is_found_without_torch(root, tmp_path, configure):
    """It takes seconds to import; the answer takes none."""
    from reprune.pipeline import run

    record = run(configure("method=l1"))
    code = ("import sys; from reprune.__main__ import main; sys.argv = ['reprune']; "
            f"code = main(['run', *{[*TINY, *EPOCHS]}, 'method=l1', 'output_dir={tmp_path}/outputs', "
            f"'results_dir={tmp_path}/results']); print('torch' in sys.modules, 'pytorch_lightning' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert f"{record['key']}: finished before" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"
