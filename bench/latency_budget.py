"""Does a budget of milliseconds hold? Three nets pruned to half their time by `reprune.prune(net, x, time=0.5)`.

    python bench/latency_budget.py   about a minute of one core

One thread, NCHW, batches of one: VGG-16 for CIFAR (32 pixels), torchvision's ResNet-50 and MobileNetV2 (224 pixels), by
L1-norm to multiples of 8, the widths that no addition couples; layer times are measured for it, none is read from a
file. `promised` is what the table says of the pruned net and `measured` what it takes, both in milliseconds that the
thread has the processor (on an idle machine, those of the clock); the dense net and the pruned one take turns, medians.
`returned` is the share of the time saved / the share of the MACs saved. `other` is what a pass spends neither in
convolutions nor in linear layers (batch norm, activations, additions, what Python does between them), and `conv` what
it spends there, by the table: where `other` falls less than the MACs, or a convolution does fewer MACs in a
millisecond when it is narrow, time stays where MACs go.
"""

import os
import tempfile
from functools import partial
from statistics import median
from time import perf_counter, thread_time

import torch
import torchvision
from common import at_least, at_most, value
from tabulate import tabulate
from torch import Tensor, nn

import reprune
from reprune import models
from reprune.structure.timing import Times

NETS = {"VGG-16": (partial(models.vgg, 16), 32), "ResNet-50": (torchvision.models.resnet50, 224),
        "MobileNetV2": (torchvision.models.mobilenet_v2, 224)}
ROUNDS, KERNELS = 21, ("aten.conv", "aten.linear", "aten.addmm")


def takes(nets: list[nn.Module], x: Tensor) -> list[tuple[float, float]]:
    """Milliseconds of the processor and of the clock that each takes, medians. They take turns."""
    taken = [[] for _ in nets]
    with torch.inference_mode():
        for _ in range(2 + ROUNDS):
            for net, row in zip(nets, taken, strict=True):
                start, clock = thread_time(), perf_counter()
                net(x)
                row.append((1000 * (thread_time() - start), 1000 * (perf_counter() - clock)))
    return [tuple(map(median, zip(*row[2:], strict=True))) for row in taken]


def parts(times: Times, plan: dict) -> tuple[float, float]:
    """Milliseconds in convolutions and linear layers, and elsewhere."""
    found = [(name.startswith(KERNELS), 1000 * times.known[name]) for name in times.operations(plan)]
    return sum(ms for kernel, ms in found if kernel), sum(ms for kernel, ms in found if not kernel)


def row(name: str) -> dict:
    make, size = NETS[name]
    dense, x = make().eval(), torch.randn(1, 3, size, size)
    small = reprune.prune(dense, x, time=0.5, multiple=8)
    times, plan = Times(dense, x), reprune.plan(small)
    promised = 1000 * times(plan)
    (whole, wall_whole), (left, wall_left) = takes([dense, small], x)
    before, after = parts(times, {}), parts(times, plan)
    macs = [reprune.cost(net, x).macs for net in (dense, small)]
    saved = {"MACs": 1 - macs[1] / macs[0], "time": 1 - left / whole}
    return {"net": name, "dense ms": round(whole, 2), "promised ms": round(promised, 2), "measured ms": round(left, 2),
            "off %": round(100 * abs(promised / left - 1), 1), "by the clock, dense": round(wall_whole, 2),
            "by the clock": round(wall_left, 2), "MACs saved": round(saved["MACs"], 3),
            "time saved": round(saved["time"], 3), "returned": round(saved["time"] / saved["MACs"], 2),
            "conv ms, dense": round(before[0], 2), "conv ms": round(after[0], 2),
            "conv MMACs/ms, dense": round(macs[0] / before[0] / 1e6, 1),
            "conv MMACs/ms": round(macs[1] / after[0] / 1e6, 1),
            "other ms, dense": round(before[1], 2), "other ms": round(after[1], 2)}


def main() -> list[dict]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        return [row(name) for name in NETS]


def targets(rows: list[dict]) -> list[dict]:
    return [target for name in NETS for target in (
        at_most(f"{name} at half its time, promised and measured differ by", value(rows, "off %", net=name), 10, " %"),
        at_least(f"{name}, share of the time saved / of the MACs saved", value(rows, "returned", net=name), 0.8))]


if __name__ == "__main__":
    print(tabulate(found := main(), headers="keys", tablefmt="github"))
    print(tabulate(targets(found), headers="keys", tablefmt="github"))
