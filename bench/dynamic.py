"""What a dynamic net saves on the clock, beside what it saves in MACs: one image at a time, on the CPU.

    python bench/dynamic.py          about a minute on two cores

Nets of random weights with gates as ManiDP puts them (models/dynamic.py), whose thresholds leave a share of the
channels open on average over random images. `skips` computes what an image needs, `masks` all of it, then the masks, as
in training; `static` is the net without gates whose groups have lost the same share of their filters, as filter pruning
would. All ways of a net take turns on the same images (A B A B ..); `times faster` is against the dense net without
gates, taken inside each round, medians; `kept` is times faster / times fewer MACs: 1 where the clock follows the MACs.
"""

import copy
from functools import partial
from statistics import median

import torch
from common import at_least, ratio, spread, turns
from tabulate import tabulate
from torch import Tensor, nn

from reprune import cost, models, remove
from reprune.models import dynamic
from reprune.pruning.allocation import Uniform
from reprune.pruning.probe import Probe

ROUNDS, IMAGES = 9, 4
OPEN = (0.6, 0.4)
NETS = {"ResNet-20, 32 x 32": (partial(models.resnet, 20), 32), "ResNet-56, 32 x 32": (partial(models.resnet, 56), 32),
        "VGG-16, 32 x 32": (partial(models.vgg, 16), 32),
        "ResNet-18, 224 x 224": (partial(models.torchvision, "resnet18", classes=10), 224)}


def gated(dense: nn.Module, images: Tensor, share: float) -> nn.Module:
    """With thresholds that leave so many channels of a layer open, on average over the images."""
    net = dynamic.gate(copy.deepcopy(dense))
    for conv in dynamic.gates(net):
        def close(conv: dynamic.GatedConv, _: tuple, out: Tensor) -> None:
            conv.threshold.copy_(conv.pi.quantile(1 - share))
            conv.mask = conv.pi * (conv.pi >= conv.threshold)
        conv.register_forward_hook(close)
    net(images)
    for conv in dynamic.gates(net):
        conv._forward_hooks.clear()
    return net.requires_grad_(False)


def masked(net: nn.Module, image: Tensor) -> Tensor:
    """As in a batch: gradients are switched on, though nothing wants one."""
    with torch.enable_grad():
        return net(image)


def each(way, images: Tensor) -> None:
    for image in images.split(1):
        way(image)


def rows(name: str) -> list[dict]:
    make, side = NETS[name]
    dense, images = make().requires_grad_(False), torch.randn(IMAGES, 3, side, side)
    dense.train()(torch.randn(8, 3, side, side))                  # statistics of batch norm
    probe = Probe(dense.eval(), images[:1])
    ways, macs = {"dense": partial(each, dense, images)}, {"dense": cost(dense, images[:1]).macs}
    for share in OPEN:
        net = gated(dense, images, share)
        smaller = remove(dense, Uniform(rate=1 - share)({g.name: torch.rand(g.size) for g in probe.groups}, probe))
        ways |= {f"{share:.0%} open, skips": partial(each, net, images),
                 f"{share:.0%} open, masks": partial(each, partial(masked, net), images),
                 f"{share:.0%} of the filters, static": partial(each, smaller, images)}
        mean = dynamic.macs_mean(net, [(images, None)])
        macs |= {f"{share:.0%} open, skips": mean, f"{share:.0%} open, masks": mean,
                 f"{share:.0%} of the filters, static": cost(smaller, images[:1]).macs}
    with torch.no_grad():
        taken = turns(ways, ROUNDS, warm_up=2)
    found = []
    for way, seconds in taken.items():
        ms = [1000 * s / IMAGES for s in seconds]
        fewer, faster = macs["dense"] / macs[way], ratio(taken["dense"], seconds)
        found.append({"net": name, "way": way, "ms an image": round(median(ms), 2), **spread(ms, 2),
                      "times fewer MACs": round(fewer, 2), "times faster": round(faster, 2),
                      "kept": round(faster / fewer, 2), "threads": torch.get_num_threads()})
    return found


def main() -> list[dict]:
    torch.manual_seed(0)
    return [row for name in NETS for row in rows(name)]


def targets(found: list[dict]) -> list[dict]:
    skips = [row["times faster"] for row in found if row["way"].endswith("skips")]
    return [at_least("one image at a time, a dynamic net is so many times faster than its dense one, at best",
                     max(skips, default=None), 1)]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
