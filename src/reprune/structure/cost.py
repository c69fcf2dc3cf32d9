"""What a net costs: parameters, multiply-adds, latency, peak memory; and the widths of its layers.

MACs are multiply-adds of conv and linear layers for one sample (ResNet-56 on CIFAR: 125.49 M). Many papers print the
same number as "FLOPs", some twice that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reprune.structure.groups import PRODUCERS, Plan, traced
from reprune.structure.modes import eval_mode


@dataclass(frozen=True)
class Cost:
    params: int
    macs: int           # multiply-adds for one sample


def cost(net: nn.Module, example: Tensor) -> Cost:
    """Counts by running the net once. example [B, C, H, W]; the count is for one sample.

    >>> cost(nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(1, 3, 32, 32))    # 8 * 3 * 9 * 32 * 32
    Cost(params=216, macs=221184)
    """
    macs = 0

    def count(module: nn.Module, _: tuple, out: Tensor) -> None:
        nonlocal macs
        macs += macs_of(module, out)

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, PRODUCERS)]
    try:
        with torch.no_grad(), eval_mode(net):
            net(example[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(sum(p.numel() for p in net.parameters()), macs)


def macs_of(module: nn.Module, out: Tensor) -> int:
    """Multiply-adds of one call that gives `out`: every output value reads one filter. A conv of a dynamic net counts
    with all its filters, whatever it has skipped."""
    channels = out.shape[-1 if isinstance(module, nn.Linear) else 1]
    return out.numel() // channels * module.weight.numel()


def widths(baseline: nn.Module, pruned: nn.Module) -> dict[str, list[int]]:
    """Filters of every conv and linear layer: name -> [before, after]."""
    return {name: [m.weight.shape[0], pruned.get_submodule(name).weight.shape[0]]
            for name, m in baseline.named_modules() if isinstance(m, PRODUCERS)}


class CostTable:
    """The cost of any plan without running or cutting the net: kept channels per axis, multiplied per layer.

    `after(removed)` is a few small vector operations, so an allocation can bisect on it.
    """

    def __init__(self, net: nn.Module):
        trace = traced(net)
        rows = {key: i for i, key in enumerate(trace.axes)}
        self.sizes = torch.tensor([len(v) for v in trace.axes.values()], dtype=torch.float64)             # [axes]
        self.touched = torch.zeros(len(rows), len(trace.groups), dtype=torch.float64)     # channels a filter occupies
        for g, group in enumerate(trace.groups):
            for s in group.slices:
                self.touched[rows[s.module, s.axis], g] = s.index.shape[1]
        self.fixed = sum(p.numel() for p in net.parameters())
        one = len(rows)                                           # an extra row that always counts 1
        weights, macs = [], []                                    # (factor, row, row): factor * channels * channels
        for name, axis in trace.axes:
            if axis != "out":
                continue
            module, out = net.get_submodule(name), rows[name, "out"]
            if isinstance(module, PRODUCERS):
                dense = getattr(module, "groups", 1) == 1
                filter_size = module.weight[0].numel()
                reads = rows[name, "in"] if dense else one        # a conv group goes as a whole: its fan-in stays
                per_channel = filter_size // len(trace.axes[name, "in"]) if dense else filter_size
                weights.append((per_channel, out, reads))
                macs += [(per_channel * c.positions, out, reads) for c in trace.calls if c.module == name]
                if module.bias is not None:
                    weights.append((1, out, one))
            else:
                weights.append((sum(p.numel() // len(trace.axes[name, "out"]) for p in module.parameters()), out, one))
        self.weights, self.macs = _terms(weights), _terms(macs)
        self.fixed -= int(self._sum(self.weights, self.sizes))
        self.groups = trace.groups

    def after(self, removed: Tensor) -> Cost:
        """removed: number of filters taken from each group [groups]."""
        channels = self.sizes - self.touched @ removed.to(torch.float64)
        return Cost(self.fixed + int(self._sum(self.weights, channels)), int(self.macs_after(removed)))

    def macs_after(self, removed: Tensor) -> Tensor:
        """The same of MACs, with a gradient. removed [groups] -> []"""
        return self._sum(self.macs, self.sizes - self.touched @ removed.to(torch.float64))

    def plan(self, plan: Plan) -> Cost:
        return self.after(torch.tensor([int((~plan[g.name]).sum()) if g.name in plan else 0 for g in self.groups]))

    @staticmethod
    def _sum(terms: tuple[Tensor, Tensor, Tensor], channels: Tensor) -> Tensor:
        factor, a, b = terms
        channels = torch.cat([channels, channels.new_ones(1)])
        return (factor * channels[a] * channels[b]).sum()


def _terms(terms: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    factor, a, b = zip(*terms, strict=True) if terms else ((), (), ())
    return torch.tensor(factor, dtype=torch.float64), torch.tensor(a).long(), torch.tensor(b).long()


@dataclass(frozen=True)
class Latency:
    ms: float           # median over the repeats, per batch
    batch_size: int
    threads: int
    device: str


def latency(nets: list[nn.Module], example: Tensor, repeats: int = 15, seconds: float = 1.0) -> list[Latency]:
    """Median time of a forward pass of each net, in ms per batch of the example's size [B, C, H, W].

    The nets take turns (A B A B ...), so that a machine whose speed drifts is fair to all of them.
    """
    times: list[list[float]] = [[] for _ in nets]
    with torch.inference_mode(), ExitStack() as modes:
        for net in nets:
            modes.enter_context(eval_mode(net))
            net(example)                                          # warm-up
        started = time.perf_counter()
        for turn in range(repeats):
            for net, row in zip(nets, times, strict=True):
                row.append(_timed(net, example))
            if turn >= 2 and time.perf_counter() - started > seconds:
                break
    device = torch.cuda.get_device_name() if example.is_cuda else "cpu"
    return [Latency(round(statistics.median(row) * 1000, 3), len(example), torch.get_num_threads(), device)
            for row in times]


def _timed(net: nn.Module, example: Tensor) -> float:
    if example.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    net(example)
    if example.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_memory(net: nn.Module, example: Tensor) -> int:
    """Most bytes of activations alive at once in one forward pass without gradients, weights not counted.

    On a GPU from the allocator; on a CPU from the profiler's record of every allocation. example [B, C, H, W].
    """
    with torch.no_grad(), eval_mode(net):
        return allocated(lambda: net(example), example.is_cuda)


def allocated(work: Callable[[], object], cuda: bool = False) -> int:
    """Most bytes that tensors made by `work` take at once.

    >>> allocated(lambda: [torch.ones(1000) for _ in range(3)])                  # 3 at once, of 4 bytes a number
    12000
    """
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
        work()
    events = sorted((e.start_ns(), e.nbytes()) for e in prof.profiler.kineto_results.events() if e.name() == "[memory]")
    alive = peak = 0
    for _, nbytes in events:
        alive += nbytes
        peak = max(peak, alive)
    return peak
