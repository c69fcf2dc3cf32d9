"""Does torch.compile pay on a CPU? Its seconds to compile a step of ResNet-20, and how much faster the step is.

    python bench/compile.py          about two minutes on two cores; needs a C++ compiler

Forward, backward and SGD on batches of 128, channels_last; forward and backward are compiled (`torch.compile(net)`).
Compiling is the time of the first step beyond that of a step, in a process of its own: with an empty cache; with the
cache that the same net has left, as in the next run of it; and of a net with half of the inner filters, with the cache
that the whole net has left, as after pruning. Compiled and eager steps then take turns (A B A B ..), the ratio is taken
inside each round, median. `pays after`: epochs of 391 batches until the time saved is that of compiling; never, where
the compiled step is not faster.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from common import ratio, spread, turns
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

from reprune import models, remove, trace

BATCH, EPOCH, ROUNDS = 128, 391, 15


def missing() -> str | None:
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"no C++ compiler ({compiler}; Debian: apt-get install g++)"


def training(compiled: bool, pruned: bool = False) -> Callable[[], None]:
    """-> one step of training of a net of its own"""
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last), torch.randint(10, (BATCH,))
    net = models.resnet(20)
    if pruned:
        net = remove(net, {g.name: torch.arange(g.size) < g.size // 2 for g in trace(net, x[:1]) if not g.coupled})
    net = net.to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    return partial(step, torch.compile(net) if compiled else net, optimiser, x, y)


def step(net: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    loss = F.cross_entropy(net(x), y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def first_step(pruned: bool) -> float:
    """Seconds of the first compiled step, without those of a step."""
    way = training(True, pruned)
    (first, *_, later) = turns({"": way}, 4, warm_up=0)[""]
    return first - later


def apart(pruned: bool = False) -> float:
    """`first_step` in a process of its own."""
    said = subprocess.run([sys.executable, __file__, "pruned" if pruned else "whole"], check=True, text=True,
                          stdout=subprocess.PIPE, cwd=Path(__file__).parent)
    return float(said.stdout.splitlines()[-1])


def main() -> list[dict]:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        compiling = {"empty cache": apart(), "cache filled": apart(), "half of the filters": apart(pruned=True)}
        taken = turns({"eager": training(False), "compiled": training(True)}, ROUNDS, warm_up=3)
    times = ratio(taken["compiled"], taken["eager"])
    saved = (1 - times) * median(taken["eager"]) * EPOCH                                            # seconds an epoch
    return [*({"step": name, "seconds": round(median(took), 3), **spread(took), "threads": torch.get_num_threads(),
               "times eager": round(ratio(took, taken["eager"]), 3)} for name, took in taken.items()),
            *({"step": f"compiling, {name}", "seconds": round(took, 1),
               "pays after": f"{took / saved:.1f} epochs" if saved > 0 else "never"}
              for name, took in compiling.items())]


if __name__ == "__main__":
    if sys.argv[1:]:
        print(first_step(pruned=sys.argv[1] == "pruned"))
    else:
        print(tabulate(main(), headers="keys", tablefmt="github"))
