"""Scores by loss increase on ResNet-20: one full forward pass per filter against a prefix computed once per group.

    python bench/loss_increase.py          about a minute on two cores

The same 256 images of CIFAR-10's shape, batches of 128, one group of each stage, turn by turn; medians, lowest
and highest of the rounds. `peak MiB` is the memory held at most beyond what was held before.
`several at once` stacks candidates in the batch dimension up to 512 images (meant for GPUs, not measured there).
"""

from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from common import at_least, peak, ratio, spread, value
from tabulate import tabulate

from reprune.models import resnet
from reprune.structure.groups import trace
from reprune.structure.suffix import Suffix
from reprune.structure.surgery import silence

IMAGES, BATCH, ROUNDS = 256, 128, 3
GROUPS = ("layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1")


def naive(net, batches, group):
    """[size]: mean cross-entropy with each filter silenced, by full forward passes."""
    nets = [silence(net, {group.name: keep}) for keep in ~torch.eye(group.size, dtype=torch.bool)]
    return torch.stack([sum(F.cross_entropy(n(x), y) for x, y in batches) / len(batches) for n in nets])


def suffix(net, batches, group, images=BATCH):
    return sum(Suffix(net, x, y, images).losses_without(group, torch.eye(group.size, dtype=torch.bool))
               for x, y in batches) / len(batches)


@torch.no_grad()
def main() -> list[dict]:
    torch.manual_seed(0)
    net = resnet(20).to(memory_format=torch.channels_last).eval()
    x = torch.randn(IMAGES, 3, 32, 32).to(memory_format=torch.channels_last)
    batches = list(zip(x.split(BATCH), torch.randint(10, (IMAGES,)).split(BATCH), strict=True))
    groups = [g for g in trace(net, x[:1]) if g.name in GROUPS]
    ways = {"naive, one forward pass a filter": naive, "prefix once, one filter at a time": suffix,
            "prefix once, several at once": lambda *a: suffix(*a, images=4 * BATCH)}
    seconds, peaks, scores = {name: [] for name in ways}, {name: [] for name in ways}, {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            each = partial(way, net, batches)
            scores[name], took, held = peak(lambda: torch.cat(list(map(each, groups))))  # noqa: B023  called at once
            seconds[name].append(took)
            peaks[name].append(held)
    base, exact = next(iter(seconds.values())), next(iter(scores.values()))
    return [{"way": name, "seconds": round(median(taken), 2), **spread(taken, 2),
             "times faster": round(ratio(base, taken), 2),
             "peak MiB": "not measured" if None in peaks[name] else round(median(peaks[name])),
             "largest difference": f"{(scores[name] - exact).abs().max():.0e}"} for name, taken in seconds.items()]


def targets(rows: list[dict]) -> list[dict]:
    faster = value(rows, "times faster", way="prefix once, one filter at a time")
    return [at_least("selection by loss increase, times the naive loop", faster, 1)]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
