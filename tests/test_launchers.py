"""Runs side by side, on joblib and on a local Ray: the same records as one after the other, and failures told."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch
from conftest import EPOCHS, TINY
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file
from test_resume import result

from reprune.pipeline import run
from reprune.sweeps.workers import own_gpus, start

METHODS = ["l1", "random", "hgsr"]
KNOBS = {"joblib": ["hydra.launcher.n_jobs=2"], "ray": ["hydra.launcher.ray.init.num_cpus=2"]}


def sweep(root, cwd, *overrides: str) -> subprocess.CompletedProcess:
    command = [sys.executable, root / "run.py", "-m", *TINY, *EPOCHS, "output_dir=outputs", *overrides]
    return subprocess.run(command, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


@pytest.mark.parametrize("launcher", KNOBS)
def test_runs_side_by_side_end_as_one_after_the_other_and_failing_cells_are_named(launcher, root, configure, one_thread,
                                                                                  tmp_path):
    serial = {m: run(configure(f"method={m}", "method.allocation.rate=0.5", f"output_dir={tmp_path}/serial"))
              for m in METHODS}
    done = sweep(root, tmp_path, f"method={','.join(METHODS)}", "method.allocation.rate=0.01,0.5",  # 0.01: no filter
                 f"hydra/launcher={launcher}", *KNOBS[launcher])
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    notes = r"^failed: .* method=(\w+) method.allocation.rate=0.01\n {8}.*would remove no filter"
    failed = re.findall(notes, done.stderr, re.MULTILINE)         # what Ray's workers print may come in between
    assert sorted(failed) == sorted(METHODS) and done.stderr.count("failed: ") == 3 and "3 cell(s)" in done.stderr
    assert "6 cells: 3 done" in done.stdout and "top-1 %" in done.stdout           # the runs' own output is seen

    out = tmp_path / "outputs"
    records = {r["method"]: r for r in (json.loads(file.read_text()) for file in out.glob("*/record.json"))}
    for m in METHODS:
        assert records[m]["env"]["threads"] == 1
        assert result(records[m]) == result(serial[m]), m
        a, b = (load_file(folder / serial[m]["key"] / "net.safetensors") for folder in (tmp_path / "serial", out))
        assert all(torch.equal(a[name], b[name]) for name in a | b), m


def pinned(n: int, folder: str, answers, leave) -> None:
    tempfile.tempdir = folder
    own_gpus(n)
    answers.put(os.environ["CUDA_VISIBLE_DEVICES"])
    leave.wait()                                                  # a worker lives longer than one run


@pytest.mark.parametrize(("n", "workers"), [(1, 3), (2, 1), (2, 2)])
def test_workers_take_different_gpus_as_long_as_there_are_some(n, workers, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    fork = multiprocessing.get_context("fork")
    answers, leave, taken = fork.Queue(), fork.Event(), []
    started = [fork.Process(target=pinned, args=(n, str(tmp_path), answers, leave)) for _ in range(workers + 1)]
    for process in started[:workers]:
        process.start()
        taken += answers.get().split(",")
    assert len(taken) == len(set(taken)) == n * workers and set(taken) <= {"3", "5", "6", "7"}
    started[-1].start()                                           # one more shares, or takes what is left
    last = answers.get().split(",")
    assert len(last) == n and (len({*last, *taken}) == min(4, n * (workers + 1)))
    leave.set()
    for process in started:
        process.join()


@pytest.mark.parametrize(("n", "workers", "shared"), [(1, 7, [1, 2, 2, 2]), (2, 3, [1, 1, 2, 2])])
def test_more_workers_than_gpus_are_spread_over_them(n, workers, shared, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    fork = multiprocessing.get_context("fork")
    answers, leave, taken = fork.Queue(), fork.Event(), []
    started = [fork.Process(target=pinned, args=(n, str(tmp_path), answers, leave)) for _ in range(workers)]
    for process in started:
        process.start()
        mine = answers.get().split(",")
        assert len(set(mine)) == n
        taken += mine
    leave.set()
    for process in started:
        process.join()
    assert sorted(taken.count(gpu) for gpu in "3567") == shared


def workers_of(root, *overrides):
    """-> the callback of hydra/launcher=joblib, and the config it is given"""
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        config = compose("config", ["hydra/launcher=joblib", *overrides], return_hydra_config=True)
    return instantiate(config.hydra.callbacks.workers), config


@pytest.mark.parametrize(("gpus", "overrides", "jobs"), [
    (3, [], 3), (3, ["hydra.callbacks.workers.runs_per_gpu=4"], 12),
    (4, ["hydra.callbacks.workers.runs_per_gpu=2", "trainer=ddp"], 4),        # of two GPUs each
    (3, ["hydra.callbacks.workers.runs_per_gpu=4", "hydra.launcher.n_jobs=5"], 5)])
def test_so_many_runs_start_as_fit_on_the_gpus(gpus, overrides, jobs, root, monkeypatch):
    monkeypatch.setenv("REPRUNE_ROOT", str(root))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    workers, config = workers_of(root, *overrides)
    workers.on_multirun_start(config)
    assert config.hydra.launcher.n_jobs == jobs


@pytest.mark.parametrize("given", ["0", "0.5", "many"])
def test_a_number_of_runs_per_gpu_that_is_none_is_named(given, root, monkeypatch):
    monkeypatch.setenv("REPRUNE_ROOT", str(root))
    workers, config = workers_of(root, f"hydra.callbacks.workers.runs_per_gpu={given}")
    with pytest.raises(SystemExit, match="^error: hydra.callbacks.workers.runs_per_gpu must be a whole number"):
        workers.on_multirun_start(config)


@pytest.mark.parametrize("launcher", ["joblib", "ray", "slurm"])
def test_a_launcher_that_is_not_installed_is_named_with_what_brings_it(launcher, root, monkeypatch):
    monkeypatch.setenv("REPRUNE_ROOT", str(root))
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        config = compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    package = config.hydra.launcher._target_.split(".")[1]
    monkeypatch.setitem(sys.modules, f"hydra_plugins.{package}", None)         # as Python marks what cannot be imported
    with pytest.raises(SystemExit, match=f"^error: hydra/launcher={launcher} needs {package}.*launchers") as error:
        instantiate(config.hydra.callbacks.workers).on_multirun_start(config)
    assert "\n" not in str(error.value)


def test_a_run_of_a_campaign_takes_a_gpu_of_its_own(root, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    lost = [*TINY, "model.weights=lost.th", f"output_dir={tmp_path}/outputs"]
    assert start(root, lost, tmp_path / "logs/run.log", threads=1).wait() == 1
    assert (tmp_path / "logs/run.log").read_text().startswith("error: model.weights: no file")
    assert [*tmp_path.glob("reprune-*-gpu-3-0.lock")] and not [*tmp_path.glob("reprune-*-gpu-5-0.lock")]
