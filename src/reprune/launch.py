"""Runs side by side: what Hydra's launchers leave open. The files of conf/hydra/launcher/ name it."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

_mine: list[FileLock] = []              # the lock on the GPU of this process, held until it ends


class Workers(Callback):
    """Before a sweep: is the launcher there, and how many runs at once? Before each run, where it runs: folder, GPU."""

    def on_multirun_start(self, config: DictConfig, **kwargs) -> None:
        launcher = config.hydra.launcher
        if not _installed(launcher._target_):
            sys.exit(f"error: hydra/launcher={config.hydra.runtime.choices['hydra/launcher']} needs "
                     f"{launcher._target_.split('.')[1]}, which is not installed: pip install -e '.[launchers]'")
        gpus = torch.cuda.device_count() if config.trainer.accelerator != "cpu" else 0
        if "n_jobs" in launcher and launcher.n_jobs is None:
            launcher.n_jobs = gpus or -1
        if "ray" in launcher and launcher.ray.remote.num_gpus is None:
            launcher.ray.remote.num_gpus = min(gpus, 1)
        if "submitit_folder" in launcher:
            print(f"what the runs print: {launcher.submitit_folder.replace('%j', '<job>')}/<job>_0_log.out and .err")
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS"):             # all that the runs print, nothing else
            os.environ.setdefault(name, "0")

    def on_job_start(self, config: DictConfig, **kwargs) -> None:
        os.chdir(config.hydra.runtime.cwd)                        # what is typed is relative to where it is typed
        own_gpu()


def own_gpu() -> None:
    """Of several visible GPUs, leaves this process one: the first that no other process of this user has taken."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    if _mine or len(gpus) < 2:
        return
    for gpu in gpus:
        lock = FileLock(Path(tempfile.gettempdir()) / f"reprune-{os.getuid()}-gpu-{gpu}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _mine.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu                  # CUDA reads it when it is first used
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[os.getpid() % len(gpus)]         # more runs at once than GPUs


def _installed(target: str) -> bool:
    try:
        return importlib.util.find_spec(target.rpartition(".")[0]) is not None
    except ModuleNotFoundError:
        return False
