"""A run that is cut off and started again ends as one that was not."""

import json
import shutil
from contextlib import suppress

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from reprune import pipeline
from reprune.pipeline import run
from reprune.runs.store import Store
from reprune.training import classifier as lightning

TWO = ["recipe.baseline.epochs=2", "recipe.sparse.epochs=2", "recipe.recover.epochs=2"]
METHODS = {"sfp": ["method.silence_every=2", "recipe.sparse.epochs=3"],
           "l1": ["recipe.test_every_epoch=true", "method/rounds=steps", "method.rounds.n=2"],
           "ga": ["method.criterion.n_samples=60", "method.search.generations=3", "method.search.n_final=60",
                  "method.rounds.layers=2", "method.criterion.refresh=false"]}
OTHERS = sorted(file.stem for file in (ROOT / "conf/method").glob("*.yaml")
                if file.stem not in METHODS and "\nprunes: false" not in file.read_text())
FEW = {"cap": ["method.allocation.drop=100"], "netadjust": ["method.rounds.n=2", "method.allocation.times=1"],
       "cacp": ["method.allocation.warmup=1", "method.allocation.episodes=2", "method.allocation.targets=[0.5]"],
       "snpfi": ["method.criterion.n_samples=20", "method.criterion.contexts=2", "method.repair.recovery.steps=2"]}
PASSING = ("latency_ms", "peak_memory_mib", "seconds", "started", "env", "overrides")         # not of the result


class Cut(BaseException):
    """As sudden as a signal."""


def result(record: dict) -> dict:
    """A record without what depends on the moment it was made."""
    return {k: result(v) if isinstance(v, dict) else v for k, v in record.items() if k not in PASSING}


MOMENTS = ((lightning.Unfinished, "on_train_epoch_end"), (Store, "note"), (pipeline, "prune"))


def after_each(monkeypatch, what) -> None:
    """Calls what(name) after every epoch and every finished stage."""
    def then(old, name):
        def new(*args, **kwargs):
            out = old(*args, **kwargs)
            what(name)
            return out
        return new

    for owner, name in MOMENTS:
        monkeypatch.setattr(owner, name, then(getattr(owner, name), name))


def cut_after(monkeypatch, calls: int) -> None:
    """Ends the process, so to speak, after so many epochs and finished stages."""
    left = iter(range(calls - 1, -1, -1))

    def count(name: str) -> None:
        if next(left, None) == 0:
            raise Cut

    after_each(monkeypatch, count)


def kept_after_each(monkeypatch, folder, attempt):
    """-> what the attempt gives; what a process that ends there leaves of its folder: after what, a copy."""
    copies = []

    def keep(name: str) -> None:
        copies.append((name, folder.with_name(f"{folder.name}-{len(copies)}")))
        shutil.copytree(folder, copies[-1][1])

    with monkeypatch.context() as patch:
        after_each(patch, keep)
        return attempt(), copies


def cut_again_and_again(calls, attempt, monkeypatch):
    """Every attempt is cut off after so many calls, until one ends. -> what it gives"""
    for _ in range(99):
        with monkeypatch.context() as patch, suppress(Cut):
            cut_after(patch, calls)
            return attempt()
    return pytest.fail("it never ends")


def goes_on(options, whole, folder, configure) -> None:
    """From what was left in a folder to the same record and net."""
    record, key = run(configure(*options, f"output_dir={folder}")), whole["key"]
    assert result(record) == result(whole), folder
    nets = [load_file(place / key / "net.safetensors") for place in (folder, folder.with_name("whole"))]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0] | nets[1]), folder
    assert not (folder / key / "stages").exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_cut_off_anywhere_ends_as_one_that_was_not(method, configure, monkeypatch, tmp_path):
    options = [f"method={method}", *TWO, *METHODS[method]]
    whole, copies = kept_after_each(monkeypatch, tmp_path / "whole",
                                    lambda: run(configure(*options, f"output_dir={tmp_path}/whole")))
    for _, folder in copies:
        goes_on(options, whole, folder, configure)
    assert len(copies) > 5


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_goes_on_in_a_stage_and_between_two_rounds(method, configure, monkeypatch, tmp_path):
    options = [f"method={method}", "method/rounds=steps", "method.rounds.n=2", "method.rounds.epochs=1",
               "method.rounds.batches=2", *FEW.get(method, [])]
    whole, copies = kept_after_each(monkeypatch, tmp_path / "whole",
                                    lambda: run(configure(*options, f"output_dir={tmp_path}/whole")))
    first = [name for name, _ in copies].index("prune")
    for place in (1, first + 1) if whole["epochs"]["sparse"] else (first + 1,):       # in sparse training; a round
        goes_on(options, whole, copies[place][1], configure)


def test_cut_off_again_and_again_it_still_ends(configure, monkeypatch, tmp_path):
    options = ["method=hgsr", *TWO]
    whole = run(configure(*options, f"output_dir={tmp_path}/whole"))
    record = cut_again_and_again(3, lambda: run(configure(*options)), monkeypatch)    # fewer never get past one stage
    assert result(record) == result(whole)


@pytest.mark.parametrize("damage", [b"", b"rubbish" * 1000])
def test_a_damaged_checkpoint_costs_its_stage_and_nothing_else(damage, configure, monkeypatch, tmp_path, capsys):
    options = ["method=hgsr", *TWO]
    whole = run(configure(*options, f"output_dir={tmp_path}/whole"))
    for calls, pattern in ((1, "baselines/*/unfinished.ckpt"), (3, "*/stages/sparse.ckpt"),
                           (5, "*/stages/sparse.safetensors")):
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_after(patch, calls)
            run(configure(*options, f"output_dir={tmp_path}/{calls}"))
        (file,) = (tmp_path / str(calls)).glob(pattern)
        file.write_bytes(damage)
        assert result(run(configure(*options, f"output_dir={tmp_path}/{calls}"))) == result(whole)
        assert f"{file}: cannot be read" in capsys.readouterr().out


def test_forced_runs_start_over_and_agree(configure):
    first = run(configure("method=l1"))
    again = run(configure("method=l1", "force=true"))
    assert result({**again, "config": {}}) == result({**first, "config": {}}) and again["started"] >= first["started"]
    assert json.dumps(again)


def test_a_finished_run_serves_a_row_that_asks_for_the_same(configure, tmp_path):
    record = run(configure("method=l1"))
    cfg = configure("method=l1")
    cfg.experiment = "paper/row"
    run(cfg)
    published = json.loads((tmp_path / "results/runs" / f"{record['key']}.json").read_text())
    assert published == {**record, "experiment": "paper/row"}
