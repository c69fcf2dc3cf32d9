"""What pruned nets save on the clock, beside what they save in MACs: ResNet-56 and VGG-16 for CIFAR, on the CPU.

    python bench/latency.py          about a minute on two cores

Forward passes of 64 images. Widths are cut to a half, to one filter more and to one less, by removing the last filters:
of all groups of VGG-16, and of ResNet-56 those that no addition couples. `l1 to half the MACs` prunes the same
groups by L1-norm to a budget, to any width and to multiples of 8. All nets of a model take turns (A B A B ..), in
both memory formats; `times faster` is against the dense net of the same format, taken inside each round, medians;
`kept` is times faster / times fewer MACs: 1 where the clock follows the MACs.
"""

import copy
from functools import partial
from statistics import median

import torch
from common import ratio, spread, turns
from tabulate import tabulate
from torch import Tensor, nn

from reprune import cost, models, remove
from reprune.methods.l1 import FilterNorm
from reprune.pruning.probe import Probe
from reprune.pruning.ranking import Budget

BATCH, ROUNDS = 64, 9
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def cut(probe: Probe, groups: str, more: int) -> nn.Module:
    """Half of the filters of every group, and `more`."""
    chosen = Budget(macs=0.5, groups=groups).candidates(probe)
    return remove(probe.net, {g.name: torch.arange(g.size) < g.size // 2 + more for g in chosen})


def by_l1(probe: Probe, groups: str, multiple: int) -> nn.Module:
    scores = FilterNorm()(probe.groups, probe)
    return remove(probe.net, Budget(macs=0.5, groups=groups, multiple=multiple)(scores, probe))


def widths(dense: nn.Module, example: Tensor, groups: str) -> dict[str, nn.Module]:
    probe = Probe(dense, example)
    return {"dense": dense, "half": cut(probe, groups, 0), "half + 1": cut(probe, groups, 1),
            "half - 1": cut(probe, groups, -1), "l1 to half the MACs": by_l1(probe, groups, 1),
            "l1 to half the MACs, multiples of 8": by_l1(probe, groups, 8)}


def rows(model: str, dense: nn.Module, groups: str) -> list[dict]:
    x = torch.randn(BATCH, 3, 32, 32)
    nets = widths(dense.eval(), x[:1], groups)
    ways = {(name, form): partial(copy.deepcopy(net).eval().to(memory_format=strides), x.to(memory_format=strides))
            for form, strides in FORMATS.items() for name, net in nets.items()}
    with torch.inference_mode():
        taken = turns(ways, ROUNDS, warm_up=2)
    macs = {name: cost(net, x[:1]).macs for name, net in nets.items()}
    found = []
    for (name, form), seconds in taken.items():
        fewer, faster = macs["dense"] / macs[name], ratio(taken["dense", form], seconds)
        ms = [1000 * s for s in seconds]
        found.append({"net": model, "widths": name, "format": form, "ms": round(median(ms), 1), **spread(ms, 1),
                      "times fewer MACs": round(fewer, 2), "times faster": round(faster, 2),
                      "kept": round(faster / fewer, 2), "threads": torch.get_num_threads()})
    return found


def main() -> list[dict]:
    torch.manual_seed(0)
    return [*rows("ResNet-56", models.resnet(56), "inner"), *rows("VGG-16", models.vgg(16), "all")]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
