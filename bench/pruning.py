"""Seconds to prune a net by L1-norm to a budget of MACs: ours against torch-pruning's iterative loop.

    python bench/pruning.py          about two minutes on two cores

Ours traces the net, scores all filters, finds the plan that just meets the budget and removes it, once; then it runs
the smaller net and the silenced one on an image and compares all layers, but for the line that says so. torch-pruning
has no budget: used iteratively, its pruner takes 1/400 of every layer per step, and MACs are counted after
each until the budget is met (on ResNet-50 1/200, to keep this short). Both start from the same net and may prune the
same filters: all of ResNet-50, and of ResNet-56 those that no addition couples, as torch-pruning 1.6.1 breaks the net
if it may cut option-A shortcuts. Runs alternate (A B A B ..), the table gives medians, lowest and highest; MACs of all
results are counted by `reprune.cost`. `peak MiB` is the memory held at most beyond what was held before, the net too.
"""

import copy
import warnings
from statistics import median

import torch
import torch_pruning as tp
import torchvision
from common import at_least, at_most, peak, ratio, spread
from tabulate import tabulate
from torch import Tensor, nn

from reprune import cost, models, remove
from reprune.methods.l1 import FilterNorm
from reprune.pruning.probe import Probe
from reprune.pruning.ranking import Budget

ROUNDS = 3
UNCHECKED = "reprune, check=False"


def ours(net: nn.Module, example: Tensor, speedup: float, groups: str, check: bool = True) -> tuple[nn.Module, int]:
    """-> the smaller net, number of prunings"""
    probe = Probe(net, example)
    scores = FilterNorm()(probe.groups, probe)
    return remove(net, Budget(macs=1 / speedup, groups=groups)(scores, probe), check), 1


def peer(net: nn.Module, example: Tensor, speedup: float, groups: str, steps: int) -> tuple[nn.Module, int]:
    """torch-pruning's progressive pruning; it works in place. -> the smaller net, number of prunings"""
    net = copy.deepcopy(net)
    kept = [m for name, m in net.named_modules() if isinstance(m, nn.Linear)
            or isinstance(m, nn.Conv2d) and groups == "inner" and not (name.startswith("layer") and "conv1" in name)]
    pruner = tp.pruner.MagnitudePruner(net, example, importance=tp.importance.MagnitudeImportance(p=1),
                                       iterative_steps=steps, pruning_ratio=1.0, ignored_layers=kept)
    macs = before = tp.utils.count_ops_and_params(net, example)[0]
    while before / macs < speedup and pruner.current_step < steps:
        pruner.step()
        macs = tp.utils.count_ops_and_params(net, example)[0]
    return net, pruner.current_step


def rows(name: str, net: nn.Module, size: int, speedup: float, groups: str, steps: int) -> list[dict]:
    net, example = net.eval(), torch.randn(1, 3, size, size)
    ways = {"torch-pruning, iterative": lambda: peer(net, example, speedup, groups, steps),
            "reprune": lambda: ours(net, example, speedup, groups),
            UNCHECKED: lambda: ours(net, example, speedup, groups, check=False)}
    seconds, peaks = {way: [] for way in ways}, {way: [] for way in ways}
    results = {}
    ours(net, example, speedup, groups)                       # first calls load code: not counted for either
    tp.utils.count_ops_and_params(net, example)
    for _ in range(ROUNDS):
        for way, prune in ways.items():
            results.pop(way, None)
            results[way], took, held = peak(prune)
            seconds[way].append(took)
            peaks[way].append(held)
    base, before = next(iter(seconds.values())), cost(net, example).macs
    return [{"net": name, "to": f"{speedup}x fewer MACs", "filters": groups, "way": way,
             "seconds": round(median(took), 3), **spread(took), "times faster": round(ratio(base, took), 1),
             "times unchecked": round(ratio(took, seconds[UNCHECKED]), 3),
             "reached": f"{before / cost(smaller, example).macs:.3f}x",
             "MACs": f"{cost(smaller, example).macs / 1e6:.2f} M", "prunings": prunings,
             "peak MiB": "not measured" if None in peaks[way] else round(median(peaks[way])), "runs": ROUNDS}
            for (way, took), (smaller, prunings) in zip(seconds.items(), results.values(), strict=True)]


def main() -> list[dict]:
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    return [*rows("CIFAR ResNet-56", models.resnet(56), 32, 2.11, "inner", steps=400),
            *rows("ImageNet ResNet-50", torchvision.models.resnet50(), 224, 2.0, "all", steps=200)]


def targets(rows: list[dict]) -> list[dict]:
    faster = [row["times faster"] for row in rows if row["way"] == "reprune"]
    dearer = [row["times unchecked"] for row in rows if row["way"] == "reprune"]
    return [at_least("pruning to a budget, times torch-pruning, the lesser of both nets", min(faster, default=None), 1),
            at_most("pruning with its check, times without, the larger of both nets", max(dearer, default=None), 1.5)]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
