"""What a penalty costs: one training step of CIFAR ResNet-20 with each of them, against the plain step.

    python bench/penalties.py          about two minutes on two cores

Batch 128, channels_last, SGD with momentum and weight decay. Every round runs the plain step and then all others, and a
ratio is taken inside its round, so that a machine that slows down slows both sides; medians over rounds.
`alone` is the penalty by itself, forward and backward. Distillation adds a forward pass of a teacher, here a ResNet-20.
"""

import copy
from statistics import median
from time import perf_counter

import torch
from tabulate import tabulate
from torch.nn import functional as F

from reprune.methods.distillation import Distillation
from reprune.methods.hgsr import HGSR, KINDS
from reprune.methods.slimming import GammaL1
from reprune.models import resnet
from reprune.sockets import Step

BATCH, ROUNDS = 128, 15


class Bench:
    """One net, batch and optimiser that all penalties share: the work of a step does not depend on the weights."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.net = resnet(20).to(self.device, memory_format=torch.channels_last).train()
        self.teacher = copy.deepcopy(self.net).eval()
        self.x = torch.randn(BATCH, 3, 32, 32, device=self.device).to(memory_format=torch.channels_last)
        self.y = torch.randint(10, (BATCH,), device=self.device)
        self.optimiser = torch.optim.SGD(self.net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return perf_counter()

    def step(self, penalty) -> float:
        """Milliseconds of one training step; penalty None = the plain step."""
        start = self.now()
        logits = self.net(self.x)
        loss = F.cross_entropy(logits, self.y)
        if penalty is not None:
            loss = loss + penalty(Step(self.net, self.x, self.y, logits, teacher=self.teacher))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return 1000 * (self.now() - start)

    def alone(self, penalty) -> float:
        """Milliseconds of the penalty's own forward and backward pass, from given logits."""
        logits = torch.randn(BATCH, 10, device=self.device, requires_grad=True)
        start = self.now()
        penalty(Step(self.net, self.x, self.y, logits, teacher=self.teacher)).backward()
        return 1000 * (self.now() - start)


def main() -> list[dict]:
    bench = Bench()
    penalties = {f"hgsr {kind}": HGSR(kind) for kind in KINDS}
    penalties["hgsr default, neuron-wise"] = HGSR(grouping="neuron")
    penalties |= {"slimming": GammaL1(), "distillation": Distillation()}
    cases = {"plain": None, **penalties}
    steps: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(ROUNDS + 1):
        for name, penalty in cases.items():
            taken = bench.step(penalty)
            if number:  # the first round warms up
                steps[name].append(taken)
    rows = []
    for name, penalty in cases.items():
        ratio = median(with_it / plain for with_it, plain in zip(steps[name], steps["plain"], strict=True))
        alone = median(bench.alone(penalty) for _ in range(ROUNDS)) if penalty else 0.0
        rows.append({"penalty": name, "step, ms": round(median(steps[name]), 1), "times plain": round(ratio, 3),
                     "alone, ms": round(alone, 2), "threads": torch.get_num_threads(), "device": bench.device})
    return rows


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github", disable_numparse=True))
