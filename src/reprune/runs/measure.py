"""The record of a finished run: measured once, at the end, and all that a table needs to be traced back."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
import tomllib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from reprune.pruning.probe import Probe, evaluate
from reprune.results.rows import SCHEMA as SCHEMA
from reprune.structure.cost import cost, latency, peak_memory
from reprune.structure.groups import PRODUCERS
from reprune.training.checkpoints import spent

Make = Callable[[Path], tuple[nn.Module, dict]]               # of a stage, see Store.stage


class Stopwatch:
    """Seconds per stage; a stage that runs several times adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + seconds, 2)

    @contextmanager
    def __call__(self, stage: str):
        start = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - start)


def timed(make: Make) -> Make:
    """The same, with the seconds it took among its facts, those of attempts that were cut off included."""
    def made(unfinished: Path) -> tuple[nn.Module, dict]:
        start = time.perf_counter() - spent(unfinished)
        net, facts = make(unfinished)
        return net, {**facts, "seconds": time.perf_counter() - start}
    return made


def measure(baseline: nn.Module, before: nn.Module, after: nn.Module, data: Any, example: Tensor, batch_size: int,
            eval_batch_size: int) -> dict[str, dict]:
    """The only place that reads the test set (beside the optional per-epoch curve). Accuracies: top-1 in percent.

    before, after: the pruned net before and after recovery; example [1, C, H, W], on the device of the nets.
    val_top1: of the pruned net, on the held-out images; what a search may select by. None where there are none.
    """
    where = str(example.device.type)
    test = data.test(eval_batch_size, where)
    batch = example.expand(batch_size, *example.shape[1:]).contiguous(memory_format=torch.channels_last)
    times = latency([baseline, after], batch)
    rows = {}
    for name, net, timed in (("baseline", baseline, times[0]), ("pruned", after, times[1])):
        of = cost(net, example)
        rows[name] = {"top1": top1(net, test), "params": of.params, "macs": of.macs, "latency_ms": timed.ms,
                      "peak_memory_mib": round(peak_memory(net, batch) / 2**20, 2)}
    rows["pruned"]["top1_before_recovery"] = top1(before, test)
    rows["pruned"]["val_top1"] = top1(after, data.val(eval_batch_size, where)) if len(data.parts.val) else None
    rows["latency"] = {k: v for k, v in asdict(times[0]).items() if k != "ms"}
    return rows


def top1(net: nn.Module, loader: Any) -> float:
    return round(evaluate(net, loader)[1], 4)


def widths(baseline: nn.Module, pruned: nn.Module) -> dict[str, list[int]]:
    """Filters of every conv and linear layer: name -> [before, after]."""
    return {name: [m.weight.shape[0], pruned.get_submodule(name).weight.shape[0]]
            for name, m in baseline.named_modules() if isinstance(m, PRODUCERS)}


def group_norms(probe: Probe) -> dict[str, list[float]]:
    """L2 norm of all the weights that read a filter's channel, for every filter of every group: what sparse training
    has left of them. Groups that no dense layer reads are left out."""
    read = {group.name: group.kernels(probe.net) for group in probe.groups}
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
    """The commit of the checkout this package lies in, `+` if files other than results differ; None outside of one."""
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
                              timeout=10).stdout.strip()
    try:
        changed = git("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)results")        # runs write there
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.SubprocessError):
        return None


def show(record: dict, folder: Path, console: Console | None = None) -> None:
    """The result of one run as a table, and where its files lie."""
    base, pruned = record["baseline"], record["pruned"]
    note = record["latency"]
    table = Table(title=f"{record['method']} on {record['model']} / {record['dataset']}, seed {record['seed']}",
                  title_justify="left")
    for column in ("", "baseline", "pruned", "change"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("top-1 %", f"{base['top1']:.2f}", f"{pruned['top1']:.2f}", f"{pruned['top1'] - base['top1']:+.2f}")
    table.add_row("top-1 % before recovery", "", f"{pruned['top1_before_recovery']:.2f}", "")
    table.add_row("parameters", f"{base['params']:,}", f"{pruned['params']:,}", _drop(base, pruned, "params"))
    table.add_row("MACs", f"{base['macs']:,}", f"{pruned['macs']:,}", _drop(base, pruned, "macs"))
    table.add_row(f"latency ms (batch {note['batch_size']}, {note['device']}, {note['threads']} threads)",
                  f"{base['latency_ms']:.2f}", f"{pruned['latency_ms']:.2f}",
                  f"{base['latency_ms'] / pruned['latency_ms']:.2f}x faster")
    table.add_row("peak activations MiB", f"{base['peak_memory_mib']:.1f}", f"{pruned['peak_memory_mib']:.1f}",
                  _drop(base, pruned, "peak_memory_mib"))
    epochs = ", ".join(f"{k} {v}" for k, v in record["epochs"].items())
    console = console or Console(soft_wrap=True)
    console.print(table)
    console.print(f"epochs: {epochs}; seconds: {', '.join(f'{k} {v:.0f}' for k, v in record['seconds'].items())}",
                  highlight=False)
    console.print(f"record {folder / 'record.json'}\nnet    {folder / 'net.safetensors'}   "
                  f"(reprune.load gives it back)", highlight=False)


def _drop(base: dict, pruned: dict, key: str) -> str:
    return f"{100 * (pruned[key] / base[key] - 1):+.1f} %"
