"""Runs side by side: what Hydra's launchers leave open. The files of conf/hydra/launcher/ name it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

_mine: list[FileLock] = []              # the locks on the GPUs of this process, held until it ends


class Workers(Callback):
    """Before a sweep: is the launcher there, how many runs at once? Before each run: its folder and GPUs.

    runs_per_gpu: as many start on each GPU, where the launcher is not told how many run at once: a small net leaves
    most of a big GPU idle."""

    def __init__(self, runs_per_gpu: int = 1):
        self.runs_per_gpu = runs_per_gpu

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        launcher = config.hydra.launcher
        if not isinstance(self.runs_per_gpu, int) or self.runs_per_gpu < 1:
            sys.exit("error: hydra.callbacks.workers.runs_per_gpu must be a whole number from 1 up, not "
                     f"{self.runs_per_gpu!r}")
        package = launcher._target_.split(".")[1]
        if importlib.util.find_spec(f"hydra_plugins.{package}") is None:
            sys.exit(f"error: hydra/launcher={config.hydra.runtime.choices['hydra/launcher']} needs {package}, which "
                     "is not installed: pip install -e '.[launchers]'")
        gpus, devices = _gpus() if config.trainer.accelerator != "cpu" else 0, _devices(config)
        if "n_jobs" in launcher and launcher.n_jobs is None:
            from joblib import cpu_count  # here: a single run does without joblib

            launcher.n_jobs = max((gpus * self.runs_per_gpu or cpu_count()) // devices, 1)
        if "initializer" in launcher:
            launcher.initializer.parent = os.getpid()
        if "ray" in launcher and launcher.ray.remote.num_gpus is None:
            launcher.ray.remote.num_gpus = min(gpus, devices)
        if "submitit_folder" in launcher:
            if shutil.which("srun") is None:
                sys.exit("error: no srun on this machine: type the command where SLURM's commands are (a login node)")
            print(f"what the runs print: {launcher.submitit_folder.replace('%j', '<job>')}/<job>_0_log.out and .err")
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS"):             # all that the runs print, nothing else
            os.environ.setdefault(name, "0")

    def on_job_start(self, config: DictConfig, **kwargs) -> None:
        os.chdir(config.hydra.runtime.cwd)                        # what is typed is relative to where it is typed
        own_gpus(_devices(config))


def start(root: Path, overrides: list[str], log: Path, threads: int) -> subprocess.Popen:
    """One run as a process of its own, with GPUs of its own, that saves and ends when the process here ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "REPRUNE_ROOT": str(root)}
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "reprune", "run", "+hydra.callbacks.workers._target_=reprune.sweeps.Workers",
             *overrides],
            env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            preexec_fn=partial(leave_with_parent, os.getpid()),
            process_group=0)                                      # Ctrl-C comes to the process here alone


def shares(at_once: int | None, bf16: bool, config: dict) -> tuple[int, int]:
    """-> runs at once, threads of each. On CPUs a run per core, of one thread, gets the most done; bf16: some
    are in bfloat16, which takes one thread however many runs there are."""
    from reprune.training.classifier import device  # here: a launcher needs no torch

    cores, threads = len(os.sched_getaffinity(0)), int(os.environ.get("OMP_NUM_THREADS") or 0)
    at_once = at_once or (1 if device(OmegaConf.create(config)) == "cuda" else max(cores // (threads or 1), 1))
    return at_once, 1 if bf16 else threads or max(cores // at_once, 1)


def leave_with_parent(parent: int) -> None:
    """In a new process: even a parent that is killed leaves no run or worker behind. Linux tells it, and it saves."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)                # 1: PR_SET_PDEATHSIG
    if os.getppid() != parent:                                    # killed before that
        signal.raise_signal(signal.SIGTERM)


def own_gpus(n: int) -> None:
    """Of more than n visible GPUs, leaves this process n: those with the fewest other processes of this user."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(_gpus())] if visible is None else visible.split(",")
    if len(gpus) <= n:
        return
    taken: list[str] = []
    for turn in count():                                          # a lock per GPU, then a second one for each, ...
        for gpu in gpus:
            if len(taken) < n and gpu not in taken:
                lock = FileLock(Path(tempfile.gettempdir()) / f"reprune-{os.getuid()}-gpu-{gpu}-{turn}.lock")
                with suppress(Timeout):
                    lock.acquire(timeout=0)
                    _mine.append(lock)
                    taken.append(gpu)
        if len(taken) == n:
            break
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)        # CUDA reads it when it is first used


def _devices(config: DictConfig) -> int:
    """How many one run uses."""
    devices = config.trainer.devices
    return devices if isinstance(devices, int) and devices > 0 else max(_gpus(), 1)


def _gpus() -> int:
    import torch  # seconds: only where a launcher asks

    return torch.cuda.device_count()
