"""What a record says of the command that made it: overrides that another machine can use, and the control it is."""

import json

import command
import pytest
import torch
from conftest import EPOCHS, TINY
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from reprune import models
from reprune.pipeline import run
from reprune.runs.compose import portable
from reprune.runs.store import Store


def test_the_overrides_of_a_cell_compose_to_its_key_elsewhere_and_name_no_place(root, tmp_path, monkeypatch):
    folder = tmp_path / "some place"
    folder.mkdir()
    torch.save(models.resnet(8, in_channels=1).state_dict(), folder / "a net.th")
    words = ["-m", *TINY, *EPOCHS, "seed=3", "method=random,l1", "logger=csv",
               f"output_dir={tmp_path}/outputs", f"dataset={{limit: 200, data_dir: {tmp_path}/data}}",
               f"model.weights='{folder}/a net.th'", "hydra.job.name=mine", "force=false", "~trainer.deterministic"]
    done = command.run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [json.loads(file.read_text()) for file in tmp_path.glob("outputs/*/record.json")]
    assert {record["method"] for record in records} == {"random", "l1"}
    monkeypatch.setenv("REPRUNE_ROOT", str(root))
    monkeypatch.chdir(folder)
    for record in records:
        assert str(tmp_path) not in json.dumps(record)
        named = {text.partition("=")[0] for text in record["overrides"]}
        assert {"model", "dataset", "measure.batch_size", "trainer.accelerator", "~trainer.deterministic"} <= named
        assert not named & {"output_dir", "logger", "force", "trainer.enable_progress_bar", "hydra.job.name"}
        with initialize_config_dir(str(root / "conf"), version_base="1.3"):
            assert Store(compose("config", record["overrides"])).key == record["key"]


@pytest.mark.parametrize(("typed", "kept"), [
    ("experiments=li2017/resnet56-B", "experiments=li2017/resnet56-B"), ("control=random", "control=random"),
    ("measure.batch_size=4", "measure.batch_size=4"), ("trainer.devices=2", "trainer.devices=2"),
    ("+a={b:[1,'c d']}", "+a={b:[1,'c d']}"), ("model.weights=null", "model.weights=null"),
    ("model.weights=/any/path/net.th", "model.weights=net.th"), ("model.weights=net.th", "model.weights=net.th"),
    ("model={depth:8,weights:'/any/net.th'}", "model={depth:8,weights:'net.th'}"),
    ("~logger", None), ("logger/x=csv", None), ("++dataset.workers=2", None), ("results_dir=${output_dir}/x", None),
    ("search.macs=0.5", None), ("data_dir=/any", None), ("dataset={limit:9,workers:2}", "dataset={limit:9}")])
def test_an_override_stays_as_it_was_typed_unless_it_says_where_things_lie_or_how_they_are_shown(typed, kept):
    assert portable([typed]) == [kept] * (kept is not None)


def test_a_control_of_a_row_names_itself_and_no_claim(configure, tmp_path):
    def asked(row, control=None):
        cfg = configure("method=random")
        with open_dict(cfg):
            cfg.experiment, cfg.control, cfg.claim = row, control, {"pruned": 90.0}
        return cfg

    plain = run(asked(None))
    published = tmp_path / "results" / "runs" / f"{plain['key']}.json"
    assert plain["overrides"] is plain["control"] is None and plain["claim"] == {"pruned": 90.0}
    assert list(plain)[3:7] == ["experiment", "overrides", "control", "claim"]
    for force in (False, True):                                   # the finished run serves the row; it runs again
        cfg = asked("paper/row", "random")
        cfg.force = force
        record = run(cfg)
        assert json.loads(published.read_text()) == record
        assert (record["key"], record["experiment"]) == (plain["key"], "paper/row")
        assert record["control"] == "random" and record["claim"] is None
        published.unlink()
