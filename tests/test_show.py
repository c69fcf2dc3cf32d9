"""A record tells what its run was, and the command worked out from it makes the same run again."""

import copy
import json
import shlex
from itertools import pairwise

import pytest
from conftest import ROOT

from reprune.errors import UserError
from reprune.results import show
from reprune.results.repeat import Repeater
from reprune.runs.store import Store, key_of

ROWS = ["li2017/resnet56-B", "half/resnet20-hgsr", "mitsuno2020/own-alexnet"]       # a claim, a setting, epochs


@pytest.fixture(scope="module")
def repeater():
    """One for all: it keeps what it has composed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRUNE_ROOT", str(ROOT))
        yield Repeater(ROOT)


@pytest.fixture
def recorded(configure):
    """recorded("method=l1", ...) -> as much of that run's record as the command is worked out from."""
    def made(*overrides, row=None, **changes):
        cfg = configure(*overrides, tiny=False)
        cfg.experiment = row
        store = Store(cfg)
        record = {"key": store.key, "experiment": row, "config": {**store.config, **changes}, "env": {"git": "abc123"},
                  **{group: cfg[group].name for group in ("model", "dataset", "method", "recipe")}}
        return json.loads(json.dumps(record))
    return made


def published(root):
    return [json.loads(file.read_text()) for file in sorted(root.glob("results/runs/*.json"))]


def test_every_committed_record_has_a_command_with_its_very_key(root, repeater):
    repeats = [repeater(record) for record in published(root)]
    assert len(repeats) >= 31
    assert [r.wanted for r in repeats if not r.exact] == []
    assert all(shlex.split(r.command)[2:] == r.overrides and r.overrides[0].startswith("experiments=") for r in repeats)


@pytest.mark.parametrize("overrides", [
    ["method=random", "seed=3"],
    ["dataset=cifar10", "method=hgsr", "method/selection=loss_increase", "method/allocation=greedy",
     "method.allocation.macs=0.7"],
    ["method=l1", "method/allocation=params"],
    ["method=l1", "method/allocation=per_layer", "+method.allocation.rates={1:0.5,10:0.25}"],
    ["experiments=li2017/vgg16-A", "~method.allocation.rates", "+method.allocation.rates={2:0.5,10:0.25}"],
    ["method=l1", "method/rounds=steps", "method.rounds.n=3"],
    ["method=ga", "method/rounds=layer_by_layer", "method.rounds.layers=3", "recipe.recover.epochs=7"],
    ["method=l1", "recipe.sparse=null", "dataset.normalize='0,1'", "model.name='a b'"],
    ["method=l1", "+method.recover_penalties.kd={_target_: reprune.methods.distillation.Distillation}"],
    ["method=hgsr", "~method.penalties.hgsr.exclude", "method.penalties.hgsr.weight=1e-5"],
    ["model=torchvision", "model.arch=densenet121", "method=slimming", "dataset.classes=7", "measure.batch_size=4"],
    ["experiments=li2017/vgg16-A", "method=random", "recipe=quick", "trainer=ddp", "trainer.devices=4"],
], ids=lambda overrides: " ".join(overrides)[:60])
def test_any_command_is_found_again_from_its_record(repeater, recorded, overrides):
    row = overrides[0].partition("experiments=")[2] or None
    record = recorded(*overrides, row=row)
    if "model.name='a b'" in overrides:
        record["model"] = "resnet20"                              # a name decides nothing, the file does
    repeat = repeater(record)
    assert repeat.exact and not repeat.notes
    groups = 1 if row else 4
    assert len(repeat.overrides) <= groups + len(overrides), repeat.command       # nothing that need not be said
    for told in ("measure.batch_size=4", "trainer=ddp", "trainer.devices=4", "method/allocation=params"):
        assert (told in repeat.overrides) == (told in overrides)


def test_values_that_follow_others_are_not_repeated(repeater, recorded):
    repeat = repeater(recorded("recipe.recover.epochs=9"))        # the scheduler's T_max is ${recipe.recover.epochs}
    assert repeat.exact and repeat.overrides[-1] == "recipe.recover.epochs=9" and "T_max" not in repeat.command


def test_what_this_version_no_longer_has_is_said(repeater, recorded):
    record = recorded("method=l1", row="half/gone")
    record["config"]["method"]["criterion"]["sharpness"] = 2      # a parameter of an older version
    for newer in ("min_keep", "skip"):                            # than the record
        del record["config"]["method"]["allocation"][newer]
    del record["config"]["recipe"]["paper_epochs"], record["config"]["model"]["weights"]      # a null
    record["key"] = key_of(record["config"])
    repeat = repeater(record)
    assert repeat.exact
    assert {"+method.criterion.sharpness=2", "~method.allocation.min_keep", "~model.weights"} <= set(repeat.overrides)
    assert "experiments/half/gone.yaml is not there any more" in repeat.notes[0]
    assert "method.criterion.sharpness: reprune.methods.l1.FilterNorm does not take it" in repeat.notes[1]
    with pytest.raises(UserError, match=r"conf/method/fpgm.yaml is not there any more; the commit abc123"):
        repeater({**record, "method": "fpgm"})


def test_a_key_that_another_config_gives_is_not_called_verified(repeater, recorded):
    record = {**recorded("method=l1"), "key": "0" * 16}
    assert not repeater(record).exact


@pytest.mark.parametrize("row", ROWS)
def test_a_run_is_explained(root, row, capsys, monkeypatch):
    monkeypatch.chdir(root)
    record = next(r for r in published(root) if r["experiment"] == row)
    assert show.main([record["key"][:12]]) == 0
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


def test_departures_from_the_row_are_named(root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    assert show.main(["7282b13b"]) == 0
    assert 'method.penalties.hgsr.weight is 0.001, the row\'s file says 0.0001' in capsys.readouterr().out


def test_files_folders_and_runs_outside_of_rows(root, tmp_path, capsys, monkeypatch):
    record = copy.deepcopy(published(root)[0])
    record["experiment"] = None
    folder = tmp_path / "outputs" / record["key"]
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    monkeypatch.setenv("REPRUNE_ROOT", str(root))
    for given in (str(folder), record["key"][:4]):
        assert show.main([given, "--output-dir", str(tmp_path / "outputs"), "--results-dir", str(tmp_path)]) == 0
    assert "row       " not in capsys.readouterr().out
    monkeypatch.setenv("REPRUNE_ROOT", str(tmp_path))             # shown even where no command can be worked out
    assert show.main([str(folder)]) == 0
    assert "cannot be worked out: no conf/config.yaml in" in capsys.readouterr().out


def test_bad_keys_and_files_get_one_line(root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(root)
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"schema": 1, "status": "running"}')
    keys = sorted(file.stem for file in (root / "results" / "runs").glob("*.json"))
    digit = next(a[0] for a, b in pairwise(keys) if a[0] == b[0])
    several = ", ".join(key[:8] for key in keys if key[0] == digit)
    for given, told in (("xyz", "and 2"), (digit, f"give more digits: {several}"), ("", "no key"),
                        (str(tmp_path / "a.json"), "cannot be read as a record"),
                        (str(tmp_path / "b.json"), "not the record of a finished run")):
        assert show.main([given, "--output-dir", str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert show.main(["xyz", "--output-dir", str(tmp_path), "--results-dir", str(tmp_path)]) == 1
    assert "hold no record" in capsys.readouterr().err
