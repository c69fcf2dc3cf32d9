"""Seconds to score all inner filters of ResNet-56: every method's criterion, beside those of torch-pruning.

    python bench/criteria.py          about ten minutes on two cores

CIFAR's ResNet-56, untrained, 512 random images for every criterion that looks at any, batches of 128; the net is traced
before, by both. Where torch-pruning has a criterion of the kind, both take turns (A B A B ..), over the same filters
and images: gradients of a batch for Taylor, of each image for Hessian, as its examples do. `times reprune's` is taken
inside each round; there is one round where one takes more than 10 s.
"""

import os
import warnings
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
import torch_pruning as tp
from common import at_least, at_most, ratio, spread
from data_path import MEAN, STD
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tabulate import tabulate
from torch import nn

from reprune import models
from reprune.data.split import split
from reprune.data.tensor import Images, TensorData
from reprune.pruning.probe import Probe

ROOT = Path(__file__).resolve().parent.parent
IMAGES, BATCH, ROUNDS, DEAR = 512, 128, 3, 10
LIMITS = {"n_samples": IMAGES, "n_examples": IMAGES, "batches": IMAGES // BATCH, "batch_size": BATCH}
PEERS = {"l1": "MagnitudeImportance", "fpgm": "FPGMImportance", "slimming": "BNScaleImportance",
         "hgsr": "LAMPImportance", "taylor2019": "TaylorImportance", "group_fisher": "HessianImportance"}


def criteria() -> dict:
    """-> {method: (its criterion, does it look at images?)}, also the paper's selection by loss increase"""
    found = {}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for name in [*sorted(file.stem for file in (ROOT / "conf/method").glob("*.yaml")), "loss_increase"]:
            choice = ["method=hgsr", f"method/selection={name}"] if name == "loss_increase" else [f"method={name}"]
            node = compose("config", choice).method.get("criterion")
            if node is None:
                continue
            looks = {option: limit for option, limit in LIMITS.items() if option in node}
            node.update(looks)
            found[name] = instantiate(node), bool(looks)
    return found


def ours(net: nn.Module, example: torch.Tensor, data, criterion) -> int:
    probe = Probe(net, example, data, batch_size=BATCH)
    return len(criterion([group for group in probe.groups if not group.coupled], probe))


def peer(net: nn.Module, groups: list, batches: list, kind: str) -> int:
    """torch-pruning's, over its own groups of the same filters"""
    importance = getattr(tp.importance, kind)()
    net.zero_grad()
    for x, y in batches if kind in ("TaylorImportance", "HessianImportance") else []:
        if kind == "TaylorImportance":
            F.cross_entropy(net(x), y).backward()
            continue
        for loss in F.cross_entropy(net(x), y, reduction="none"):
            net.zero_grad()
            loss.backward(retain_graph=True)
            importance.accumulate_grad(net)
    return sum(importance(group) is not None for group in groups)


def main() -> list[dict]:
    warnings.filterwarnings("ignore")
    os.environ["REPRUNE_ROOT"] = str(ROOT)
    torch.manual_seed(0)
    net, example = models.resnet(56).eval(), torch.zeros(1, 3, 32, 32)
    pixels, labels = torch.randint(256, (4 * IMAGES, 32, 32, 3), dtype=torch.uint8), torch.arange(4 * IMAGES) % 10
    data = TensorData(Images(pixels, labels), Images(pixels, labels), name="random", channels=3, classes=10, size=32,
                      flip=False, mean=MEAN, std=STD, parts=split("cifar10", labels, len(labels), IMAGES, 0, None))
    theirs = models.resnet(56).eval()
    theirs.load_state_dict(net.state_dict())
    kept = [m for name, m in theirs.named_modules() if isinstance(m, nn.Linear)
            or isinstance(m, nn.Conv2d) and not (name.startswith("layer") and "conv1" in name)]
    graph = tp.DependencyGraph().build_dependency(theirs, example)
    groups = list(graph.get_all_groups(ignored_layers=kept, root_module_types=[nn.Conv2d]))
    batches = list(data.plain(BATCH, 0, IMAGES))
    Probe(net, example)
    rows = []
    for name, (criterion, looks) in criteria().items():
        ways = {"reprune": partial(ours, net, example, data, criterion)}
        if name in PEERS:
            ways[f"torch-pruning {PEERS[name]}"] = partial(peer, theirs, groups, batches, PEERS[name])
        taken, scored, rounds = {way: [] for way in ways}, {}, ROUNDS
        while len(taken["reprune"]) < rounds:
            for way, score in ways.items():
                start = perf_counter()
                scored[way] = score()
                taken[way].append(perf_counter() - start)
                rounds = 1 if taken[way][-1] > DEAR else rounds
        rows += [{"method": name, "images": IMAGES if looks else 0, "way": way, "groups": scored[way],
                  "seconds": round(median(seconds), 3), **spread(seconds), "rounds": len(seconds),
                  "times reprune's": round(ratio(seconds, taken["reprune"]), 2)} for way, seconds in taken.items()]
    return rows


def targets(rows: list[dict]) -> list[dict]:
    mine = [row for row in rows if row["way"] == "reprune"]
    free, driven = ([row["seconds"] for row in mine if bool(row["images"]) == looks] for looks in (False, True))
    faster = [row["times reprune's"] for row in rows if row["way"] != "reprune"]
    return [at_most("dearest criterion that looks at weights alone, ResNet-56", max(free, default=None), 1, " s"),
            at_most(f"dearest criterion that looks at {IMAGES} images, ResNet-56", max(driven, default=None), 60, " s"),
            at_least("scoring, times torch-pruning, the least of six kinds", min(faster, default=None), 1)]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
