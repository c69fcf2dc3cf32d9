"""What a penalty costs: one training step of CIFAR ResNets with each of them, ours and torch-pruning's.

    python bench/penalties.py          about a minute and a half on two cores

Batch 128, channels_last, SGD with momentum and weight decay. Every round runs the plain step and then all others, and a
ratio is taken inside its round, so that a machine that slows down slows both sides; medians over rounds.
`alone` is the penalty by itself, forward and backward. Distillation adds a forward pass of a teacher of the same size.
torch-pruning's regularisers add to the gradients after the backward pass. Its GroupNormPruner compares to our
group penalties: both take the norms of whole groups of filters; BNScalePruner is the penalty of slimming.
"""

import copy
from statistics import median
from time import perf_counter

import torch
import torch_pruning as tp
from common import at_most, ratio, spread
from tabulate import tabulate
from torch.nn import functional as F

from reprune.methods.distillation import Distillation
from reprune.methods.hgsr import HGSR, KINDS
from reprune.methods.slimming import GammaL1
from reprune.models import resnet
from reprune.pruning.sockets import Step

BATCH = 128
ROUNDS = {20: 9, 56: 7}                                           # of each depth


class Bench:
    """One net, batch and optimiser that all penalties share. A learning rate of 0 keeps the weights what they are: they
    must stay finite, torch-pruning's regularisers pass over groups with NaN."""

    def __init__(self, depth: int) -> None:
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = resnet(depth).to(self.device, memory_format=torch.channels_last).train()
        self.teacher = copy.deepcopy(self.net).eval()
        self.x = torch.randn(BATCH, 3, 32, 32, device=self.device).to(memory_format=torch.channels_last)
        self.y = torch.randint(10, (BATCH,), device=self.device)
        self.optimiser = torch.optim.SGD(self.net.parameters(), 0.0, momentum=0.9, weight_decay=5e-4)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return perf_counter()

    def regularisers(self) -> dict:
        """torch-pruning's, as functions that add to the gradients of the net."""
        importance, example = tp.importance.GroupMagnitudeImportance(p=2), self.x[:1]
        return {f"torch-pruning {kind.__name__}": kind(self.net, example, importance=importance).regularize
                for kind in (tp.pruner.GroupNormPruner, tp.pruner.BNScalePruner, tp.pruner.GrowingRegPruner)}

    def step(self, penalty=None, regularise=None) -> float:
        """Milliseconds of one training step, plain or with one of the two."""
        start = self.now()
        logits = self.net(self.x)
        loss = F.cross_entropy(logits, self.y)
        if penalty is not None:
            loss = loss + penalty(Step(self.net, self.x, self.y, logits, teacher=self.teacher))
        self.optimiser.zero_grad()
        loss.backward()
        if regularise is not None:
            regularise(self.net)
        self.optimiser.step()
        return 1000 * (self.now() - start)

    def alone(self, penalty=None, regularise=None) -> float:
        """Milliseconds of the penalty's own forward and backward pass, from given logits."""
        if penalty is None and regularise is None:
            return 0.0
        logits = torch.randn(BATCH, 10, device=self.device, requires_grad=True)
        start = self.now()
        if regularise is not None:
            regularise(self.net)
        else:
            penalty(Step(self.net, self.x, self.y, logits, teacher=self.teacher)).backward()
        return 1000 * (self.now() - start)


def cases(bench: Bench, kinds: tuple[str, ...]) -> dict[str, dict]:
    """Name -> what `step` and `alone` are given."""
    penalties = {f"hgsr {kind}": HGSR(kind) for kind in kinds}
    penalties |= {"hgsr default, neuron-wise": HGSR(grouping="neuron"), "slimming": GammaL1(),
                  "distillation": Distillation()}
    return {"plain": {}, **{name: {"penalty": penalty} for name, penalty in penalties.items()},
            **{name: {"regularise": act} for name, act in bench.regularisers().items()}}


def rows(depth: int, kinds: tuple[str, ...]) -> list[dict]:
    bench = Bench(depth)
    given = cases(bench, kinds)
    steps, alone = {name: [] for name in given}, {name: [] for name in given}
    for number in range(ROUNDS[depth] + 1):
        for name, case in given.items():
            taken = bench.step(**case), bench.alone(**case)
            if number:                                            # the first round warms up
                steps[name].append(taken[0])
                alone[name].append(taken[1])
    assert all(p.isfinite().all() for p in bench.net.parameters())
    return [{"net": f"ResNet-{depth}", "penalty": name, "step, ms": round(median(steps[name]), 1),
             **spread(steps[name], 1), "times plain": round(ratio(steps[name], steps["plain"]), 3),
             "alone, ms": round(median(alone[name]), 2), "threads": torch.get_num_threads(), "device": bench.device}
            for name in given]


def main() -> list[dict]:
    default = HGSR().kind
    return [*rows(20, tuple(KINDS)), *rows(56, (default,))]


def targets(rows: list[dict]) -> list[dict]:
    """The dearest of our group penalties, alone, against torch-pruning's."""
    def alone(depth: int, kind: str) -> float | None:
        return max((row["alone, ms"] for row in rows
                    if row["net"] == f"ResNet-{depth}" and row["penalty"].startswith(kind)), default=None)

    found = []
    for depth in ROUNDS:
        ours, theirs = alone(depth, "hgsr"), alone(depth, "torch-pruning GroupNorm")
        found.append(at_most(f"dearest group penalty on ResNet-{depth}, times torch-pruning's GroupNormPruner",
                             ours / theirs if rows else None, 1))
    return found


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github", disable_numparse=True))
