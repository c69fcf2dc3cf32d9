"""A sweep on a real SLURM, with a job that is requeued and one that is cancelled, ends as it does without one."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch
from conftest import HANG, TINY
from safetensors.torch import load_file
from slurm.cluster import ask, cluster, lacking, wait
from test_resume import result

from reprune.pipeline import run

CELLS = ["l1", "random", "hgsr"]
EPOCHS = ["recipe.baseline.epochs=3", "recipe.sparse.epochs=3", "recipe.recover.epochs=1"]


@pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
def test_jobs_that_are_requeued_or_cancelled_end_as_a_sweep_without_slurm(root, configure, one_thread, tmp_path):
    serial = {cell: run(configure(*EPOCHS, f"method={cell}", f"output_dir={tmp_path}/serial")) for cell in CELLS}
    out = tmp_path / "slurm"
    command = [sys.executable, root / "run.py", "-m", *TINY, *EPOCHS, f"method={','.join(CELLS)}", f"output_dir={out}",
               "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]

    with cluster() as env, (tmp_path / "driver").open("w") as log, ExitStack() as stack:
        paths = [str(root / "tests/slurm/stopping"), *filter(None, [env.get("PYTHONPATH")])]
        env |= {"STOPS": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)}
        driver = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log)
        stack.callback(driver.kill)
        told = (tmp_path / "driver").read_text

        def stopped(file: str) -> str:
            """The job that stands still in the middle of a training."""
            wait(file, lambda: (tmp_path / file).is_file() and (tmp_path / file).read_text(), told)
            return (tmp_path / file).read_text()

        # the job that trains the baseline is cancelled: another one goes on with it
        job = stopped("unfinished.ckpt")
        ask(env, "scancel", job)
        cancelled = CELLS[int(job.split("_")[1])]

        # hgsr is requeued in the middle of its sparse training; SLURM would wait two minutes
        job = stopped("sparse.ckpt")
        ask(env, "scontrol", "requeue", job)
        wait("its place in the queue", lambda: ask(env, "squeue", "-h", "-j", job, "-o", "%T") == "PENDING", told)
        ask(env, "scontrol", "update", f"JobId={job}", "StartTime=now")
        wait("the jobs", lambda: len(list(out.glob("*/record.json"))) == 2, told)
        for stage, what in (("baseline", cancelled), ("sparse", "hgsr")):
            assert any(f"{stage}: 3 epochs, going on where it was cut off" in file.read_text()
                       for file in out.glob("slurm/*/*_log.out")), f"{what} was not cut off in its {stage} training"

        # without accounting the command cannot know that a job is gone; typed again, it brings that cell back
        driver.send_signal(signal.SIGINT)
        driver.wait(HANG)
        again = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert again.returncode == 0, again.stdout + again.stderr
        assert again.stdout.count("finished before, nothing to do") == 2

    records = {r["method"]: r for r in (json.loads(file.read_text()) for file in out.glob("*/record.json"))}
    for cell in CELLS:
        assert result(records[cell]) == result(serial[cell]), cell
        a, b = (load_file(folder / serial[cell]["key"] / "net.safetensors") for folder in (tmp_path / "serial", out))
        assert all(torch.equal(a[name], b[name]) for name in a | b), cell
