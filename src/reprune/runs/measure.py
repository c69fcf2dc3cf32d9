"""The record of a finished run: measured once, at the end, and all that a table needs to be traced back."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.models import dynamic
from reprune.models.checkpoint import save
from reprune.pruning.probe import evaluate
from reprune.pruning.sockets import Method
from reprune.structure.cost import cost, latency, peak_memory, widths
from reprune.structure.groups import traced


class Stopwatch:
    """Seconds per stage; a stage that runs several times adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + seconds, 2)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - start)


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """So many of torch's on the CPU meanwhile; None: as the environment says. Sums differ between numbers of them."""
    if number is not None and (not isinstance(number, int) or number < 1):
        raise UserError(f"threads={number}: use a number from 1 up, or null, for what the environment says")
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(baseline: nn.Module, sparse: nn.Module | None, before: nn.Module, after: nn.Module, data: Any,
            example: Tensor, batch_size: int, eval_batch_size: int) -> dict[str, dict]:
    """The only place that reads the test set (beside the optional per-epoch curve). Accuracies: top-1 in percent.

    sparse: the net after sparse training, where there was one; before, after: the pruned net before and after recovery;
    example [1, C, H, W], on the device of the nets.
    macs_mean: of a dynamic net, over the test images.
    val_top1: on the held-out images; what a weight or a search may be selected by. None where there are none.
    """
    where = str(example.device.type)
    test = data.test(eval_batch_size, where)
    right = cache(lambda net: top1(net, test))                    # some are the same net
    val = data.val(eval_batch_size, where) if len(data.parts.val) else None
    batch = example.expand(batch_size, *example.shape[1:]).contiguous(memory_format=torch.channels_last)
    times = latency([baseline, after], batch)
    rows = {}
    for name, net, timed in (("baseline", baseline, times[0]), ("pruned", after, times[1])):
        of = cost(net, example)
        rows[name] = {"top1": right(net), "params": of.params, "macs": of.macs, "latency_ms": timed.ms,
                      "peak_memory_mib": round(peak_memory(net, batch) / 2**20, 2)}
        rows[name]["val_top1"] = val and top1(net, val)
    rows["pruned"]["top1_before_recovery"] = right(before)
    if dynamic.gates(after):
        rows["pruned"]["macs_mean"] = round(dynamic.macs_mean(after, test))
    if sparse is not None:
        rows["sparse"] = {"top1": right(sparse), "val_top1": val and top1(sparse, val)}
    rows["latency"] = {k: v for k, v in asdict(times[0]).items() if k != "ms"}
    if unread := getattr(data, "left_out", None):
        rows["left_out"] = len(unread)
    return {**rows, "widths": widths(baseline, after)}


def coded(method: Method, baseline: nn.Module, pruned: nn.Module, folder: Path) -> tuple[nn.Module, dict[str, float]]:
    """-> the net as its file has it, where the method writes one, and what the record says of single weights: `density`
    where they are masked and some are zero, `bytes` and `bits` of the file, `bytes_dense` of the unpruned net's."""
    found, where = {}, next(pruned.parameters()).device
    zero, of = (sum(int(n(p)) for p in pruned.parameters()) for n in (lambda p: (p == 0).sum(), Tensor.numel))
    if method.masks is not None and method.masks.sparse and zero:
        found["density"] = round(100 * (1 - zero / of), 4)
    if method.codec is not None:
        method.codec.encode(pruned, file := folder / "net.coded.safetensors")
        pruned, size = method.codec.decode(file).to(where), file.stat().st_size
        with TemporaryDirectory() as place:
            save(baseline, dense := Path(place) / "net.safetensors")
            found |= {"bytes": size, "bits": round(8 * size / sum(p.numel() for p in baseline.parameters()), 4),
                      "bytes_dense": dense.stat().st_size}
    return pruned, found


def top1(net: nn.Module, loader: Any) -> float:
    return round(evaluate(net, loader)[1], 4)


def check_alive(baseline: nn.Module, sparse: nn.Module, data: Any, view: dict[str, Any], remedy: str) -> None:
    """Raises UserError where sparse training has left a net that only guesses, of one that clearly did not, by five
    points: whatever is removed, scores say nothing. By held-out images, or training images where there are none."""
    where, batch_size = view["example"].device.type, view["batch_size"]
    loader = (data.val(batch_size, where) if len(data.parts.val) else
              data.plain(batch_size, view["seed"], min(5000, len(data.parts.train)), where))
    labels = torch.cat([y for _, y in loader]).bincount()
    share = float(labels.max() / labels.sum())                    # right where the answer is always the same
    guessing = 100 * (share + 2 * math.sqrt(share * (1 - share) / int(labels.sum())))      # and two standard errors
    if (after := top1(sparse, loader)) <= guessing < (before := top1(baseline, loader)) - 5:
        raise UserError(f"sparse training has left the net at chance: top-1 {after:.1f} % of {labels.sum()} "
                        f"{'held-out' if len(data.parts.val) else 'training'} images, where guessing gets up to "
                        f"{guessing:.1f} % and the baseline {before:.1f} %: nothing is pruned; {remedy}")


def group_norms(net: nn.Module) -> dict[str, list[float]]:
    """L2 norm of all the weights that read a filter's channel, for every filter of every group: what sparse training
    has left of them. net: traced. Groups that no dense layer reads are left out."""
    read = {group.name: group.kernels(net) for group in traced(net).groups}
    return {name: [float(f"{norm:.4g}") for norm in torch.cat(kernels, 1).norm(dim=1).tolist()]
            for name, kernels in read.items() if kernels}


def environment(device: str, devices: int = 1) -> dict:
    """What the numbers were made with; devices: as many trained the net together."""
    versions = {name: _version(name) for name in ("reprune", "torch", "torchvision", "pytorch-lightning")}
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"git": _git(), **versions, "python": platform.python_version(), "device": device,
            "devices": devices, "device_name": name, "threads": torch.get_num_threads()}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:               # src/ on the path, not installed: a checkout
        return tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]["version"]


def _git() -> str | None:
    """The commit of the checkout this package lies in, `+` if files other than results differ, or source is not in it;
    None outside of one."""
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
                              timeout=10).stdout.strip()
    try:
        changed = git("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)results")        # runs write there
        source = (f":/{place}" for place in ("src", "conf", "experiments", "run.py"))
        new = git("ls-files", "--others", "--exclude-standard", "--", *source)
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed or new)
    except (OSError, subprocess.SubprocessError):
        return None
