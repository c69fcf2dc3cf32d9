"""A record tells what its run was, and its command makes the same run again."""

import copy
import json
from itertools import pairwise

import pytest

from reprune.__main__ import main
from reprune.results import show
from reprune.results.records import read_record

ROWS = ["li2017/resnet56-B", "half/resnet20-l1std", "half/resnet56-ga"]       # a claim, a setting, epochs


def published(root):
    return [json.loads(file.read_text()) for file in sorted(root.glob("results/runs/*.json"))]


def test_the_command_of_every_committed_record_has_its_very_key(root, compose):
    records = [read_record(file) for file in sorted(root.glob("results/runs/*.json"))]
    assert len(records) >= 17
    assert [record.key for record in records if show.key_here(record, compose) != record.key] == []


@pytest.fixture
def told(root, tmp_path, capsys, monkeypatch):
    """told(overrides=[...], ...) -> what is said of a committed record with these fields"""
    def shown(**changes):
        record = published(root)[0] | changes
        (tmp_path / "record.json").write_text(json.dumps(record))
        monkeypatch.setenv("REPRUNE_ROOT", str(root))
        assert main(["show", str(tmp_path)]) == 0
        return capsys.readouterr().out
    return shown


def test_a_command_that_gives_another_key_is_not_called_verified(root, told):
    key = published(root)[0]["key"]
    assert f"verified: this command has the key {key}" in told() and "not verified" not in told()
    other = told(overrides=["experiments=mitsuno2020/own-digits", "seed=7"])
    assert "python run.py experiments=mitsuno2020/own-digits seed=7\n" in other and f"here, not {key}" in other
    assert "not verified: it does not compose" in told(overrides=["experiments=mitsuno2020/gone"])
    assert "not run from a command line" in told(overrides=None)


def test_what_a_record_of_a_stranger_names_is_shown_without_a_command(root, told):
    config = published(root)[0]["config"]
    config["method"]["criterion"] = {"_target_": "sympy.sympify", "a": "__import__('os').system('touch x')"}
    said = told(config=config)
    assert "no command is given: its config names sympy.sympify, not of this project" in said
    assert "python run.py" not in said.split("To repeat it")[1]


def test_nothing_that_a_record_names_is_imported(told, tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "not verified" in told(overrides=["+method.criterion._target_=hostile.Mine"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("row", ROWS)
def test_a_run_is_explained(root, row, capsys, monkeypatch):
    monkeypatch.chdir(root)
    record = next(r for r in published(root) if r["experiment"] == row)
    assert main(["show", record["key"][:12]]) == 0
    out = capsys.readouterr().out
    for said in (record["key"], row, f"{record['baseline']['top1']:.2f}", f"{record['pruned']['top1']:.2f}",
                 f"{record['pruned']['top1_before_recovery']:.2f}", f"{record['pruned']['macs']:,}",
                 f"{record['pruned']['latency_ms']:.2f}", f"{record['seconds']['recover']:.1f}", record["env"]["git"],
                 f"experiments={row}", f"verified: this command has the key {record['key']}"):
        assert said in out, said
    assert ("93.04 → 93.06" in out) == (row == "li2017/resnet56-B") == ("Table 1" in out.split("To repeat")[0])


def test_bars_are_as_long_as_the_layers_are_wide():
    lines = show.picture({"conv1": [64, 16], "conv2": [32, 32], "conv3": [32, 31], "fc": [10, 10]})
    assert "2 of 4 layers" in lines[1] and len(lines) == 4
    assert lines[2].count("█") == show.BAR // 4 and lines[2].count("░") == show.BAR - show.BAR // 4
    assert lines[3].count("█") + lines[3].count("░") == show.BAR // 2


def test_departures_from_the_row_are_named(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(root)
    record = next(r for r in published(root) if r["experiment"] == "half/resnet20-l1")
    record["config"]["method"]["allocation"]["macs"] = 0.4
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert main(["show", str(tmp_path)]) == 0
    assert "method.allocation.macs is 0.4, the row's file says 0.5" in capsys.readouterr().out


def test_files_folders_and_runs_outside_of_rows(root, tmp_path, capsys, monkeypatch):
    record = copy.deepcopy(published(root)[0])
    record["experiment"] = None
    folder = tmp_path / "outputs" / record["key"]
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    for given in (str(folder), record["key"][:4]):
        assert main(["show", given, "--output-dir", str(tmp_path / "outputs"), "--results-dir", str(tmp_path)]) == 0
    assert "row       " not in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)                                   # from any folder: what came with the package counts
    assert main(["show", record["key"][:4]]) == 0
    assert f"verified: this command has the key {record['key']}" in capsys.readouterr().out


def test_bad_keys_and_files_get_one_line(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(root)
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"schema": 1, "status": "running"}')
    keys = sorted(file.stem for file in (root / "results" / "runs").glob("*.json"))
    digit = next(a[0] for a, b in pairwise(keys) if a[0] == b[0])
    several = ", ".join(key[:8] for key in keys if key[0] == digit)
    for given, told in (("xyz", f"and {len(keys) - 10} more"), (digit, f"give more digits: {several}"), ("", "no key"),
                        (str(tmp_path / "a.json"), "invalid JSON"),
                        (str(tmp_path / "b.json"), "status: input should be 'done'")):
        assert main(["show", given, "--output-dir", str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert main(["show", "xyz", "--output-dir", str(tmp_path), "--results-dir", str(tmp_path)]) == 1
    assert "hold no record" in capsys.readouterr().err
