"""Random nets: a list of steps, each of which makes a tensor of tensors that are there already.

    python tests/graphs.py 500        # so many of them, each against the property

A step is a tuple of numbers, so that hypothesis can draw it and make it smaller; whatever the numbers, the net runs.
"""

import copy
import sys

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import check_removal, lively, random_plan
from torch import nn

import reprune
from reprune.structure.check import RemovalError
from reprune.structure.cost import CostTable
from reprune.structure.groups import traced

KINDS = ("conv", "norm", "depthwise", "grouped", "add", "concat", "split", "gate", "shuffle", "pool", "scale", "twice")
steps = st.lists(st.tuples(st.sampled_from(KINDS), *[st.integers(0, 11)] * 3), min_size=2, max_size=9)


class Random(nn.Module):
    """conv -> steps -> mean -> linear. The tensors have 4, 6, 8, .. channels, all of one size."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.layers = [], nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3, padding=1)})
        self.scales = nn.ParameterDict()
        widths = [8]
        for number, (kind, *picks) in enumerate(steps):
            at, other = (p % len(widths) for p in picks[:2])
            made = self._add(str(number), kind, at, other, picks[2], widths)
            if made:
                self.steps.append((str(number), kind, at, other))
                widths += made
        self.last = len(widths) - 1
        self.fc = nn.Linear(widths[-1], 5)

    def _add(self, name, kind, at, other, size, widths):
        """-> the widths of what a step makes; none where it does not fit"""
        n, wide = widths[at], 4 + 2 * (size % 5)
        if kind == "conv":
            self.layers[name] = nn.Conv2d(n, wide, 1 + 2 * (size % 2), padding=size % 2, bias=size % 3 > 0)
            return [wide]
        if kind == "norm":
            self.layers[name] = nn.BatchNorm2d(n)
        elif kind == "depthwise":
            self.layers[name] = nn.Conv2d(n, n * (1 + size % 2), 3, padding=1, groups=n)
            return [n * (1 + size % 2)]
        elif kind == "grouped":
            if n % 2:
                return None
            self.layers[name] = nn.Conv2d(n, wide, 1, groups=2)
            return [wide]
        elif kind == "add":
            if widths[other] != n:
                self.layers[name] = nn.Conv2d(widths[other], n, 1)
        elif kind == "concat":
            return [n + widths[other]] if n + widths[other] < 40 else None
        elif kind == "split":
            return [n // 2, n - n // 2]
        elif kind == "gate":
            self.layers[name] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, 3, 1), nn.ReLU(),
                                              nn.Conv2d(3, n, 1))
        elif kind == "scale":
            self.scales[name] = nn.Parameter(torch.ones(1, n, 1, 1))
        elif kind == "twice":
            self.layers[name] = nn.Conv2d(n, n, 3, padding=1)
        elif kind == "shuffle" and n % 2:
            return None
        return [n]

    def forward(self, x):
        made = [F.relu(self.layers["stem"](x))]
        for name, kind, at, other in self.steps:
            h = made[at]
            if kind in ("conv", "depthwise", "grouped"):
                made.append(F.silu(self.layers[name](h)))
            elif kind == "norm":
                made.append(self.layers[name](h))
            elif kind == "add":
                made.append(h + (self.layers[name](made[other]) if name in self.layers else made[other]))
            elif kind == "concat":
                made.append(torch.cat([h, made[other]], 1))
            elif kind == "split":
                made += h.split([h.shape[1] // 2, h.shape[1] - h.shape[1] // 2], 1)
            elif kind == "gate":
                made.append(h * self.layers[name](h).sigmoid())
            elif kind == "shuffle":
                b, c, height, width = h.shape
                made.append(h.view(b, 2, c // 2, height, width).transpose(1, 2).reshape(b, c, height, width))
            elif kind == "pool":
                made.append(F.max_pool2d(h, 3, 1, 1))
            elif kind == "scale":
                made.append(h * self.scales[name])
            else:
                made.append(self.layers[name](F.relu(self.layers[name](h))))
        return self.fc(made[self.last].mean((2, 3)))


def random_net(steps):
    """The builder that a checkpoint names: a checkpoint holds plain values, as "conv:0:1:2 add:1:0:0"."""
    parts = (step.split(":") for step in steps.split())
    return Random([(kind, *map(int, picks)) for kind, *picks in parts])


@torch.no_grad()
def holds(steps, folder):
    """Silence equals remove; the cost is known before; a file gives the same bits; twice in a row."""
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    text = " ".join(":".join(map(str, step)) for step in steps)
    net = lively(random_net(text).double(), x, torch.Generator().manual_seed(0))
    for seed in (0, 1):
        groups = reprune.trace(net, x)
        plan = random_plan(net, seed)
        if not any(g.size > 1 for g in groups) or not reaches(net, plan, x):
            return
        try:
            smaller = check_removal(net, x, plan)
        except RemovalError:
            assert traced(net).empties(traced(net).keep(plan))    # max pooling of no channels
            return
        assert reprune.cost(smaller, x) == CostTable(net).plan(plan)
        assert CostTable(net).plan({}) == reprune.cost(net, x)
        file = folder / "net.safetensors"
        single = copy.deepcopy(smaller).float()
        reprune.save(single, file, model={"steps": text}, builder=random_net)
        assert torch.equal(reprune.load(file, builder=random_net).eval()(x.float()), single(x.float()))
        net = smaller


def reaches(net, plan, x):
    """Whether the plan changes the outputs, and they still depend on the input: else a comparison proves nothing."""
    silent = reprune.silence(net, plan)
    return not torch.equal(silent(x), net(x)) and not torch.allclose(silent(x), silent(x + .1 * x.cos()), rtol=1e-9)


def main(number):
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)(
            given(steps)(lambda s: holds(s, Path(folder))))()
    print(f"{number} random nets: silence equals remove, costs are known, files give the same bits")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
