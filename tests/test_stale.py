"""Never a stale result: what other code, other images, other options or damage have made is not served."""

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from conftest import EPOCHS, ROOT, TINY
from test_faults import flip, truncate
from test_resume import Cut, cut_after, result

from reprune.__main__ import main
from reprune.files import write_json
from reprune.pipeline import run
from reprune.runs import fingerprint as code
from reprune.runs.store import Store
from reprune.sweeps import status

L1, PROBE, RESNET, DIGITS = "methods/l1.py", "pruning/probe.py", "models/cifar_resnet.py", "data/small.py"
TRAINS = "training/classifier.py", "training/speed.py", "pipeline.py"


@pytest.fixture
def edit(monkeypatch):
    """edit("methods/l1.py", ...): from now on these files read as if someone had added a line. edit(): none"""
    read, parsed = Path.read_text, code._tree

    def edited(*names: str) -> None:
        files = {code.PACKAGE / name for name in names}
        for cached in (code._digits, code.sources, code.home, code._imported, code.code_of):
            cached.cache_clear()
        monkeypatch.setattr(Path, "read_text", lambda self, *a, **k:
                            read(self, *a, **k) + "\nedited = 1\n" * (self in files))
        monkeypatch.setattr(code, "_tree", lambda file: (parsed.__wrapped__ if file in files else parsed)(file))

    yield edited
    monkeypatch.undo()
    edited()
    monkeypatch.undo()


def trained(capsys) -> list[str]:
    """The stages that were trained since it was asked last."""
    return [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if " epoch" in line and line[0] != "e"]


@pytest.mark.parametrize("file, parts, again", [
    (L1, "method", ["recover"]), (PROBE, "method", ["recover"]), (DIGITS, "dataset", ["baseline", "recover"]),
    (RESNET, "model", ["baseline", "recover"]), *[(file, "training", ["baseline", "recover"]) for file in TRAINS]])
def test_a_finished_run_of_other_code_is_made_again(file, parts, again, configure, edit, capsys, tmp_path):
    first = run(configure("method=l1"))
    capsys.readouterr()
    edit(file)
    second = run(configure("method=l1"))
    out = capsys.readouterr().out
    assert out.count(f"{first['key']}: made with other code ({parts}), made again") == 1
    assert [line.split(":")[0] for line in out.splitlines() if ": 1 epoch" in line] == again
    assert second["code"] != first["code"] and second["key"] == first["key"]
    assert result({**second, "code": 0}) == result({**first, "code": 0})
    (older,) = (tmp_path / "outputs" / first["key"]).glob("superseded-*.json")
    assert older.name == f"superseded-{'-'.join(digits[:4] for digits in first['code'].values())}.json"
    assert json.loads(older.read_text()) == {**first, "status": "superseded"}
    assert run(configure("method=l1")) == second and "finished before" in capsys.readouterr().out


def test_an_edit_that_a_run_does_not_use_changes_nothing(configure, edit, capsys):
    first = run(configure("method=l1"))
    capsys.readouterr()
    edit("methods/hgsr.py", "models/cifar_vgg.py", "data/folder.py", "runs/loggers.py", "results/show.py")
    assert run(configure("method=l1")) == first and trained(capsys) == []


def test_a_record_without_code_counts_as_of_other_code(configure, capsys, tmp_path):
    store = Store(configure("method=l1"))
    record = run(configure("method=l1"))
    del record["code"]
    store.write(record)
    assert "code" in run(configure("method=l1"))
    assert "made with other code (method, dataset, model, training), made again" in capsys.readouterr().out
    assert (store.folder / "superseded-unknown.json").is_file()


@pytest.mark.parametrize("force", ["true", "false"])
@pytest.mark.parametrize("calls, kept", [(1, "baselines/*/unfinished.ckpt"), (3, "*/stages/sparse.ckpt"),
                                         (5, "*/stages/sparse.json")])
def test_what_an_attempt_has_left_is_not_taken_over_by_other_code(calls, kept, force, configure, edit, capsys,
                                                                  monkeypatch, tmp_path):
    options = ["method=hgsr", "recipe.baseline.epochs=2", "recipe.sparse.epochs=2", f"force={force}"]
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, calls)
        run(configure(*options))
    assert list((tmp_path / "outputs").glob(kept))
    edit("methods/hgsr.py")
    capsys.readouterr()
    record = run(configure(*options))
    out = capsys.readouterr().out
    begun = [line for line in out.splitlines() if " epoch" in line and ": " in line]
    if calls == 1:                                             # of the method, a baseline is independent
        assert begun[0] == "baseline: 2 epochs, going on where it was cut off" and "other code" not in out
        return
    assert out.count(f"{record['key']}: made with other code (method), made again") == 1
    assert begun[0] == "sparse: 2 epochs"


def test_a_baseline_cut_off_does_not_go_on_with_another_model(configure, edit, capsys, monkeypatch):
    options = ["method=l1", "recipe.baseline.epochs=2"]
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, 1)
        run(configure(*options))
    edit(RESNET)
    run(configure(*options))
    out = capsys.readouterr().out
    assert "(model), made again" in out and "going on" not in out


def test_status_and_show_say_that_code_has_changed(configure, edit, capsys, tmp_path, monkeypatch):
    record = run(configure("method=l1"))
    monkeypatch.setenv("REPRUNE_ROOT", str(ROOT))
    folder = str(tmp_path / "outputs" / record["key"])
    assert status.state(Store(configure("method=l1"))) == (status.DONE, "")
    assert main(["show", folder]) == 0 and "not today's" not in capsys.readouterr().out
    edit(L1)
    says, note = status.state(Store(configure("method=l1")))
    assert says == status.SUPERSEDED and note.endswith("made with other code (method)")
    assert main(["show", folder]) == 0
    assert "its code is not today's (method)" in " ".join(capsys.readouterr().out.split())
    assert "made again" not in capsys.readouterr().out


def test_status_marks_a_baseline_of_other_code(configure, edit, capsys, tmp_path):
    sweep = [*TINY, *EPOCHS, "method=l1,random", f"output_dir={tmp_path}/outputs"]
    run(configure("method=l1"))

    def said() -> str:
        capsys.readouterr()
        status.show(status.cells(sweep, ROOT), everything=True)
        return capsys.readouterr().out

    assert "; 1 of 1 baselines trained; " in said()
    edit(RESNET)
    now, net = said(), next((tmp_path / "outputs" / "baselines").iterdir()).name
    assert "; 0 of 1 baselines trained, 1 superseded; " in now and now.count(f"{net} superseded (model)") == 2
    edit(L1)
    assert "; 1 of 1 baselines trained; " in said()


def test_code_is_read_and_not_imported(tmp_path):
    config = {"method": {"_target_": "mine.Mine"}, "dataset": {"_target_": "reprune.data.digits"},
              "model": {"_target_": "reprune.models.resnet"}}
    (tmp_path / "mine.py").write_text("import nowhere\nfrom reprune.methods.l1 import FilterNorm\nclass Mine: pass\n")
    script = ("import sys; from reprune.runs.fingerprint import fingerprint, sources; "
              f"fingerprint({config}); assert not {{'torch', 'mine', 'reprune.data'}} & set(sys.modules); "
              "assert {'mine', 'reprune.methods.l1', 'reprune.structure.groups'} <= set(sources('mine.Mine'))")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


# ---------------------------------------------------------------- damage

@pytest.mark.parametrize("name, damage", [
    ("net.safetensors", Path.unlink), ("net.safetensors", lambda f: f.write_bytes(truncate(f.read_bytes()))),
    ("net.safetensors", lambda f: f.write_bytes(flip(f.read_bytes(), 1))),
    ("record.json", lambda f: f.write_text(f.read_text().replace('"params": ', '"params": 1', 1))),
    ("seal.json", Path.unlink), ("seal.json", lambda f: f.write_text("{}"))])
def test_a_finished_run_with_a_damaged_file_is_made_again(name, damage, configure, capsys, tmp_path):
    options = "method=baseline", "recipe.baseline.epochs=0"
    whole = run(configure(*options))
    folder = tmp_path / "outputs" / whole["key"]
    assert run(configure(*options)) == whole
    damage(folder / name)
    assert status.state(Store(configure(*options)))[0] == status.MISSING
    capsys.readouterr()
    again = run(configure(*options))
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if f"{folder}/record.json: not the whole record of this run (" in line)
    assert line.endswith("), made again")
    assert "finished before" not in out and result(again) == result(whole)
    assert run(configure(*options)) == again and (folder / "net.safetensors").is_file()


def test_a_line_that_says_done_is_no_record(configure, capsys, tmp_path):
    cfg = configure("method=baseline", "recipe.baseline.epochs=0")
    cfg.experiment, store = "paper/row", Store(cfg)
    for file in (store.record_file, store.published):
        write_json(file, {"status": "done", "key": store.key})
    assert store.finished() is None and store.publication() is None
    record = run(cfg)
    assert "params" in record["pruned"] and json.loads(store.published.read_text()) == record


def test_a_published_record_of_other_code_gives_way_to_the_one_of_today(configure, tmp_path):
    cfg = configure("method=baseline", "recipe.baseline.epochs=0")
    record = run(cfg)
    cfg.experiment, store = "paper/row", Store(cfg)
    older = {**record, "experiment": "paper/row", "code": {**record["code"], "model": "0" * 8}}
    write_json(store.published, older)
    run(cfg)
    assert json.loads(store.published.read_text()) == {**record, "experiment": "paper/row"}


@pytest.mark.parametrize("calls, pattern", [(1, "baselines/*/unfinished.ckpt"), (3, "*/stages/sparse.ckpt")])
@pytest.mark.parametrize("what", ["zip", "weights"])
def test_a_zip_that_is_no_checkpoint_costs_its_stage_and_nothing_else(what, calls, pattern, configure, monkeypatch,
                                                                      tmp_path, capsys):
    options = ["method=hgsr", "recipe.baseline.epochs=2", "recipe.sparse.epochs=2"]
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, calls)
        run(configure(*options))
    (file,) = (tmp_path / "outputs").glob(pattern)
    if what == "zip":
        with ZipFile(file, "w") as content:
            content.writestr("a.txt", "b")
    else:
        torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, file)
    capsys.readouterr()
    record = run(configure(*options))
    out = capsys.readouterr().out
    assert out.count(f"{file}: cannot be read, its stage starts again") == 1 and "going on" not in out
    assert record["epochs"]["sparse"] == 2
