"""bfloat16 on a CPU: how many images a machine trains on, ways side by side, and where the time of a step goes.

    python bench/bf16.py          about three minutes on two cores; needs a CPU with bfloat16 (avx512_bf16, amx_bf16)

- `throughput`: ResNet-20 on CIFAR-10 (random images, where it is not), by `fit` as in a run, batches of 128. One run on
  all cores in float32, as `python run.py` does, against a run per core on one thread each, in float32, in bfloat16
  (`trainer=cpu_bf16`) and compiled (`speed.compile`, if there is a compiler). Each run is a process; the ways take
  turns, the runs of a way begin together; images per second of all runs of a way, compared inside each round.
- `convolutions`: GFLOP/s, a multiply-add counted as two, on one thread: of the net's own 3x3 convolutions alone,
  forward in bfloat16, one after the other, and of whole steps, where a backward pass counts as two forward ones.
- `part of a step`: milliseconds that torch's profiler finds in the operations of a step, and their share.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import torch
from common import at_least, ratio, spread, turns, value
from compile import missing as no_compiler
from data_path import cifar
from epoch import Clock, by_fit
from hydra import compose, initialize_config_dir
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

from reprune import cost, models
from reprune.training.speed import native_bf16

ROOT = Path(__file__).resolve().parent.parent
BATCH, BATCHES, ROUNDS = 128, 12, 5
DEFAULT, BF16 = "one run, all cores, float32", "a run per core, bfloat16"
COMPILED = f"{BF16}, compiled"
PARTS = {"convolution": ("convolution", "mkldnn"), "batch norm": ("batch_norm",), "ReLU": ("clamp_min", "threshold"),
         "additions": ("add",), "optimiser": ("Optimizer", "mul", "zero"), "copies and casts": ("copy", "to", "fill")}


def missing() -> str | None:
    return None if native_bf16() else "this CPU has no bfloat16 instructions"


def run(threads: int, overrides: list[str]) -> None:
    """One run that trains a few batches at every line it is sent, and answers with the seconds of a step."""
    os.environ["REPRUNE_ROOT"] = str(ROOT)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["model=resnet20", "dataset=cifar10", "method=baseline", "recipe=cifar", "logger=none",
                                 "trainer.enable_progress_bar=false", f"output_dir={folder}", *overrides])
        net, (data, _) = models.resnet(20).to(memory_format=torch.channels_last), cifar(limit=BATCHES * BATCH)
        for _ in sys.stdin:
            with contextlib.redirect_stdout(io.StringIO()):
                by_fit(net, data, cfg, clock := Clock())
            print(clock.step, flush=True)


def start(runs: int, threads: int, *overrides: str) -> list[subprocess.Popen]:
    command = [sys.executable, __file__, str(threads), *overrides]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
                             cwd=Path(__file__).parent) for _ in range(runs)]


def together(processes: list[subprocess.Popen]) -> float:
    """Images per second of runs that begin at once."""
    for process in processes:
        print("go", file=process.stdin, flush=True)
    return sum(BATCH / float(process.stdout.readline()) for process in processes)


def throughput(cores: int) -> list[dict]:
    ways = {DEFAULT: start(1, cores, "trainer.accelerator=cpu"),
            "a run per core, float32": start(cores, 1, "trainer.accelerator=cpu"),
            BF16: start(cores, 1, "trainer=cpu_bf16")}
    if not no_compiler():
        ways[COMPILED] = start(cores, 1, "trainer=cpu_bf16", "speed.compile=true")
    rates = {name: [] for name in ways}
    try:
        for number in range(ROUNDS + 1):
            for name, runs in ways.items():
                rate = together(runs)
                if number:                                        # the first round warms up, and compiles
                    rates[name].append(rate)
    finally:
        for process in (process for runs in ways.values() for process in runs):
            process.kill()
            process.wait()
    return [{"what": "throughput", "way": name, "images/s": round(median(of)), **spread(of, 0),
             "times the default": round(ratio(of, rates[DEFAULT]), 2), "runs": len(ways[name])}
            for name, of in rates.items()]


def step(net: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(net(x).float(), y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


@torch.no_grad()
def convolve(calls: list[tuple[nn.Conv2d, torch.Tensor]]) -> None:
    for conv, x in calls:
        conv(x)


def alone(net: nn.Module, x: torch.Tensor) -> list[tuple[nn.Conv2d, torch.Tensor]]:
    """The convolutions of a net in bfloat16, each with an input as it has it in the net."""
    calls: list[tuple[nn.Conv2d, torch.Tensor]] = []
    hooks = [module.register_forward_pre_hook(lambda conv, given: calls.append((conv, given[0].bfloat16())))
             for module in net.modules() if isinstance(module, nn.Conv2d)]
    net(x)
    for hook in hooks:
        hook.remove()
    layers = {conv: nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, bias=False) for conv, _ in calls}
    return [(layers[conv].to(torch.bfloat16, memory_format=torch.channels_last), given) for conv, given in calls]


def one_core() -> list[dict]:
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last), torch.randint(10, (BATCH,))
    net = models.resnet(20).to(memory_format=torch.channels_last).train()
    flop = 2 * BATCH * cost(net, x[:1]).macs / 1e9
    whole = partial(step, net, torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4), x, y)
    took = turns({"convolutions": partial(convolve, alone(net, x)), "step": whole}, ROUNDS, warm_up=2)
    convs, steps = flop / median(took["convolutions"]), 3 * flop / median(took["step"])
    rows = [{"what": "convolutions", "way": "forward, alone", "GFLOP/s": round(convs)},
            {"what": "convolutions", "way": "a whole step", "GFLOP/s": round(steps),
             "of the convolutions' rate": round(3 * ratio(took["convolutions"], took["step"]), 2)}]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        whole()
    self_ms = {event.key: event.self_cpu_time_total / 1000 for event in profile.key_averages()}
    total = sum(self_ms.values())
    for name, ops in {**PARTS, "else": ("",)}.items():
        found = [self_ms.pop(key) for key in [*self_ms] if any(op in key for op in ops)]
        rows.append({"what": "part of a step", "way": name, "ms": round(sum(found), 1),
                     "share": round(sum(found) / total, 3)})
    return rows


def main() -> list[dict]:
    rows, threads = throughput(os.cpu_count() or 1), torch.get_num_threads()
    torch.set_num_threads(1)
    rows += one_core()
    torch.set_num_threads(threads)
    return rows


def targets(rows: list[dict]) -> list[dict]:
    return [*(at_least(f"{way}, times the images/s of {DEFAULT}", value(rows, "times the default", way=way), limit)
              for way, limit in ((BF16, 1.9), (COMPILED, 2.1))),
            at_least("a bfloat16 step of ResNet-20, of the rate of its convolutions",
                     value(rows, "of the convolutions' rate", way="a whole step"), 0.6)]


if __name__ == "__main__":
    if sys.argv[1:]:
        run(int(sys.argv[1]), sys.argv[2:])
    else:
        print(tabulate(main(), headers="keys", tablefmt="github"))
