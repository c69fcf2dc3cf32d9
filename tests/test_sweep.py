"""A sweep: what is finished is not launched, a cell that fails never stops the others, the order changes nothing."""

import json
import subprocess

import command
import pytest
import torch
from conftest import EPOCHS, TINY
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from safetensors.torch import load_file
from test_resume import result

from reprune.__main__ import main
from reprune.files import write_json
from reprune.pipeline import run
from reprune.runs.compose import Composer
from reprune.runs.store import Store
from reprune.sweeps import status
from reprune.sweeps.cells import SWEEP, Cells, cell

SILENT = ["hydra/job_logging=none", "hydra/hydra_logging=none"]


@pytest.fixture
def hydra(root, monkeypatch):
    """Hydra as run.py starts it."""
    monkeypatch.setenv("REPRUNE_ROOT", str(root))
    monkeypatch.delenv(SWEEP, raising=False)
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        yield GlobalHydra.instance().hydra


def options(root, group: str) -> list[str]:
    return sorted(f"{group}={file.stem}" for file in (root / "conf" / group).glob("*.yaml"))


def test_fast_composition_is_hydras(root, hydra):
    """Methods, models, datasets, rows of papers, and every kind of override."""
    cells = [[name, "seed=1"] for name in options(root, "method")[::3]] + [
        *[[name, "method=l1"] for name in options(root, "model")[::3] + options(root, "dataset")[::2]],
        *[[f"experiments={row}", "recipe.recover.epochs=2"] for row in
          ("li2017/resnet56-B", "half/resnet20-ga", "hu2018/svhn-vgg16", "mitsuno2020/own-digits")],
        ["method=l1", "method/allocation=macs", "method.allocation.macs=0.5"],
        ["method.allocation.macs=0.5", "method/allocation=macs", "method=l1"],
        ["method=hgsr", "method/selection=loss_increase", "+method.recover_penalties=${method.penalties}"],
        ["method=l1", "+method.recover_penalties.kd={_target_: reprune.methods.distillation.Distillation}"],
        ["+a=b", "++seed=3", "++b.c={x: 1, y: [1, 2, {z: null}]}"], ["+method@other=l1", "other.criterion.p=2"],
        ["method=l1", "~method.criterion.p"], ["~measure"], ["~logger"],
        ["recipe.baseline.epochs=9", "recipe={baseline: {epochs: 3}}"],
        ["seed=1", "seed=2"], ["method=random", "method=l1"], ["seed='1'"], ["seed=1.0"], ["dataset.limit=${seed}"],
        ["experiment=mine", "claim={pruned: 1}"], ["output_dir=/x/${method.name}"], ["data_dir=${oc.env:REPRUNE_ROOT}"],
        ["hydra.job.name=mine", "method=l1"]]
    fast = Composer(hydra.config_loader)
    for overrides in cells:
        ours, theirs = fast(overrides), compose("config", overrides, return_hydra_config=True)
        with open_dict(theirs):
            theirs.experiment = theirs.hydra.runtime.choices.experiments
            del theirs["hydra"]
        for resolve in (False, True):
            assert OmegaConf.to_container(ours, resolve=resolve) == OmegaConf.to_container(theirs, resolve=resolve)
        assert list(ours) == list(theirs) and OmegaConf.is_struct(ours) == OmegaConf.is_struct(theirs)
        assert Store(ours).key == Store(theirs).key, overrides
        assert fast(overrides) == theirs                          # what it remembers has not been changed


@pytest.mark.parametrize("overrides", [["method=nonsense"], ["nokey=1"], ["+seed=1"], ["~nothing"], ["a.b@c=3"],
                                       ["method=l1", "method.criterion.nokey=1"], ["seed=1,2"], ["seed=[1"]])
def test_what_does_not_compose_fails_as_it_does_with_hydra(overrides, hydra):
    said = []
    for way in (Composer(hydra.config_loader), lambda o: compose("config", o)):
        with pytest.raises((HydraException, ValueError)) as error:
            way(overrides)
        said.append((error.type, str(error.value).replace("\\", "")))         # quotes for a shell or without
    assert said[0] == said[1]


def test_hydra_composes_once_per_choice_of_groups(hydra, monkeypatch):
    composed, old = [], hydra.config_loader.load_configuration
    monkeypatch.setattr(hydra.config_loader, "load_configuration", lambda *a, **k: composed.append(a) or old(*a, **k))
    fast = Composer(hydra.config_loader)
    keys = {Store(fast([f"method={m}", f"seed={s}", "recipe.recover.epochs=3"])).key
            for m in ("l1", "random") for s in range(20)}
    assert len(keys) == 40 and len(composed) == 2


def test_a_cell_whose_job_may_see_another_config_is_left_to_the_job(hydra, tmp_path):
    """A record lies under the key that a careless look would compute: no false "finished"."""
    where = [*TINY, *EPOCHS, f"output_dir={tmp_path}/outputs", f"results_dir={tmp_path}/results", "method=baseline"]
    master = hydra.compose_config("config", where, "MULTIRUN", with_log_configuration=False)
    finished = Store(compose("config", [*where, "seed=0"]))
    finished.folder.mkdir(parents=True)
    finished.net_file.touch()
    finished.write({"status": "done", "key": finished.key, "code": finished.code})
    with open_dict(master):
        master.hydra.job.num = 0
    HydraConfig.instance().set_config(master)
    todo = [[*where, "seed=${hydra:job.num}"], [*where, "seed=${nowhere}"], [*where, "seed=0", "model.weights=none.th"],
            [*where, "seed=0", "nokey=1"], [*where, "seed=0", "force=true"], [*where, "seed=0", "hydra.job.chdir=true"],
            [*where, "seed=0", "+hydra.job.env_set.A=1"], [*where, "seed=1"]]
    try:
        assert Cells(hydra.config_loader, master).missing([[*where, "seed=0"], *todo]) == todo
        assert HydraConfig.get().job.num == 0
    finally:
        HydraConfig.instance().cfg = None


def test_what_is_finished_is_not_launched_and_serves_the_row_that_asks(hydra, tmp_path, capsys):
    row = "experiments=mitsuno2020/own-digits-plain"
    where = [*TINY, *EPOCHS, f"output_dir={tmp_path}/outputs", f"results_dir={tmp_path}/results", *SILENT]
    record = run(compose("config", [*where, row, "seed=1"]))
    published = tmp_path / "results/runs" / f"{record['key']}.json"
    assert not published.exists()                                 # it ran under no name

    def launched(*overrides: str) -> list[int]:
        seeds = []
        batches = hydra.multirun("config", lambda cfg: seeds.append(cfg.seed), [*where, row, *overrides], False)
        assert sum(map(len, batches)) == len(seeds)
        return seeds

    capsys.readouterr()
    assert launched("seed=1") == []
    said = capsys.readouterr().out
    assert said.count(f"{record['key']}: finished before") == 1
    assert "1 cells: 0 done, 1 finished before, 0 failed" in said
    assert json.loads(published.read_text()) == {**record, "experiment": row.removeprefix("experiments="),
                                                 "claim": record["config"]["claim"]}
    assert launched("seed=0,1,2,3", "hydra.sweeper.max_batch_size=2") == [0, 2, 3]
    assert launched("seed=0,1", "force=true") == [0, 1]
    assert launched("seed=0,1", "hydra/sweeper=basic") == [0, 1]


def test_the_order_of_a_sweep_changes_no_result_and_the_baseline_is_trained_once(hydra, tmp_path, capsys):
    methods, found = ["hgsr", "random", "sfp"], []
    for order in (methods, methods[::-1]):
        folder = tmp_path / order[0]
        capsys.readouterr()
        hydra.multirun("config", lambda cfg: cell(cfg, run),
                       [*TINY, *EPOCHS, f"output_dir={folder}", f"method={','.join(order)}", *SILENT], False)
        assert capsys.readouterr().out.count("baseline: 1 epoch") == 1
        assert len(list(folder.glob("baselines/*/net.safetensors"))) == 1
        records = [json.loads(file.read_text()) for file in folder.glob("*/record.json")]
        found.append({r["method"]: (result(r), load_file(folder / r["key"] / "net.safetensors")) for r in records})
        torch.rand(7)                                             # global random numbers are somewhere else now
    for method in methods:
        (one, weights), (other, same) = found[0][method], found[1][method]
        assert one == other
        assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_row_of_a_stranger_runs_nothing_that_it_names(root, tmp_path):
    """Neither what its config names nor what it makes of hydra; named on the command line, it is trusted."""
    (tmp_path / "conf").symlink_to(root / "conf")
    folder = tmp_path / "experiments/evil2026"
    folder.mkdir(parents=True)
    (tmp_path / "hostile.py").write_text("open('ran', 'w')\nclass Mine: pass\n")
    call = "{_target_: hostile.Mine}"
    rows = {"target": f"method: {{criterion: {call}}}", "hydra": f"hydra: {{callbacks: {{x: {call}}}}}",
            "package": f"callbacks: {{x: {call}}}", "defaults": "defaults: [/hydra/output: x]"}
    for name, body in rows.items():
        head = "# @package hydra" if name == "package" else "# @package _global_"
        (folder / f"{name}.yaml").write_text(f"{head}\n# Row {name}.\n{body}\n")
    told = {name: command.run(f"experiments=evil2026/{name}", *TINY, cwd=tmp_path) for name in rows}
    assert all(done.returncode for done in told.values()) and not (tmp_path / "ran").exists()
    assert "_target_ 'hostile.Mine' is not of this project" in told["target"].stderr
    for name in ("hydra", "package", "defaults"):
        assert told[name].stderr.startswith(f"error: experiments/evil2026/{name}.yaml: "), told[name].stderr
        assert told[name].stderr.count("\n") == 1


def sweep(root, out, *overrides: str) -> subprocess.CompletedProcess:
    return command.run("-m", *TINY, *EPOCHS, f"output_dir={out}/outputs", *overrides, cwd=out)


def test_a_failing_cell_is_named_and_the_others_run(root, tmp_path):
    cells = ["method=l1", "method.allocation.rate=0.01,0.5", "seed=0"]       # at 0.01 no filter would go
    first = sweep(root, tmp_path, *cells)
    assert first.returncode == 1 and "Traceback" not in first.stderr
    records = [json.loads(f.read_text()) for f in tmp_path.glob("outputs/*/record.json")]
    assert [r["config"]["method"]["allocation"]["rate"] for r in records] == [0.5]
    (note,) = tmp_path.glob("outputs/failed/*.json")
    assert "would remove no filter" in json.loads(note.read_text())["error"]
    summary = first.stderr[first.stderr.index("failed:"):]
    assert "rate=0.01" in summary and "would remove no filter" in summary and "1 cell(s)" in summary
    assert "2 cells: 1 done, 0 finished before, 1 failed" in first.stdout

    again = sweep(root, tmp_path, "method=l1", "method.allocation.rate=0.5,0.4", "seed=0")
    assert again.returncode == 0 and "failed:" not in again.stderr           # of this sweep, not of an earlier one
    assert again.stdout.count("finished before, nothing to do") == 1
    assert "2 cells: 1 done, 1 finished before, 0 failed" in again.stdout


def test_status_tells_done_running_failed_cut_off_and_missing_apart(root, tmp_path, configure, monkeypatch, capsys):
    monkeypatch.chdir(root)
    options = [*TINY, *EPOCHS, f"output_dir={tmp_path}/outputs", f"results_dir={tmp_path}/results"]
    record = run(configure("method=l1", "seed=1"))
    ask = [*options, "method=l1,random", "seed=1,2", "-m"]
    assert main(["status", *ask]) == 0
    said = capsys.readouterr().out
    assert "4 cells: 1 done, 3 missing" in said and record["key"] in said and "left" in said

    keys = {" ".join(c.what): c.key for c in status.cells([*options, "method=l1,random", "seed=1,2"], root)}
    l1, random_1, random_2 = (next(k for w, k in keys.items() if w.endswith(end)) for end in
                              ("method=l1 seed=2", "method=random seed=1", "method=random seed=2"))
    write_json(tmp_path / "outputs/failed" / f"{l1}.json", {"error": "no such thing"})
    stages = tmp_path / "outputs" / random_1 / "stages"
    stages.mkdir(parents=True)
    (tmp_path / "outputs" / random_2).mkdir()
    with FileLock(tmp_path / "outputs" / random_2 / "lock"):
        assert main(["status", *ask]) == 1
    said = capsys.readouterr().out
    assert "1 done, 1 failed, 1 cut off, 1 running" in said and "no such thing" in said
    assert "1 of 2 baselines trained" in said and f"{TINY[0]} " not in said  # what all cells share is not repeated

    (stages / "sparse.json").write_text("{}")                     # the baseline of seed 1 is trained
    for half in (tmp_path / "outputs/failed" / f"{l1}.json", tmp_path / "outputs" / record["key"] / "record.json"):
        half.write_text(half.read_text()[:20])
    assert main(["status", *ask]) == 1
    said = capsys.readouterr().out
    assert "1 missing, 1 failed, 1 cut off, 1 missing" not in said and "2 missing, 1 failed, 1 cut off" in said
    assert f"{l1}.json cannot be read" in said and "after sparse" in said


def test_status_gives_the_key_of_one_run_and_lists_of_many_what_to_look_at(root, tmp_path, configure, monkeypatch,
                                                                           capsys):
    monkeypatch.chdir(root)
    options = [*TINY, *EPOCHS, f"output_dir={tmp_path}/outputs", f"results_dir={tmp_path}/results", "method=l1"]
    record = run(configure("method=l1"))
    capsys.readouterr()
    assert main(["status", *options]) == 0
    (baseline,) = (tmp_path / "outputs/baselines").iterdir()
    said = capsys.readouterr().out
    assert said.splitlines()[1].split()[:3] == [record["key"], baseline.name, "done"]
    assert "1 cells: 1 done; 1 of 1 baselines trained" in said

    for seed in range(50, 60):
        write_json(tmp_path / "outputs/failed" / f"{Store(configure('method=l1', f'seed={seed}')).key}.json",
                   {"error": "no space left"})
    assert main(["status", *options, "seed=range(100)"]) == 1
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 8 and "seed=50\n" in said and "no space left (10 cells)" in said
    assert "100 cells: 1 done, 89 missing, 10 failed" in said
    assert main(["status", *options, "seed=range(100)", "--all"]) == 1 and "seed=99" in capsys.readouterr().out


def test_status_refuses_what_does_not_compose(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    assert main(["status", "method=nonsense"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error:") and "nonsense" in error and error.count("\n") == 1
