"""The error that removed channels make in the layers that read them, as a quadratic form: eq. 1 and 2 of `ga`; and the
inputs of those layers, taken from images in one pass, for whoever fits something to them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reprune.errors import UserError
from reprune.pruning.probe import Probe, eval_mode
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup, Plan, Slice, kept, traced
from reprune.structure.layers import TRANSPOSED, module_groups
from reprune.structure.notes import notes

MEMORY = 2**30                          # bytes that the unfolded inputs of a layer may take at once, about


def error_matrix(gram: Tensor, weight: Tensor) -> Tensor:
    """Q of eq. 2. gram: G [c k, c k]; weight: W [n, c, k] -> [c, c].

    One output, two channels of one weight each (2 and -1), two inputs x = (1, 2) and (3, 4), so N = 2:

    >>> x, w = torch.tensor([[1., 2.], [3., 4.]]), torch.tensor([[[2.], [-1.]]])
    >>> error_matrix(x.T @ x / 2, w)
    tensor([[ 20., -14.],
            [-14.,  10.]])
    >>> ((x[:, 0] * 2) ** 2).mean()                          # the error without channel 0 alone: Q_00
    tensor(20.)
    """
    n, c, k = weight.shape
    flat = weight.reshape(n, c * k)
    return (gram * (flat.T @ flat)).view(c, k, c, k).sum((1, 3))


def quadratic(removed: Tensor, q: Tensor) -> Tensor:
    """(1 - z)^T Q (1 - z) of a whole population. removed: 1 - z [population, c]; q [c, c] -> [population]

    >>> quadratic(torch.tensor([[1., 0.], [1., 1.]]), torch.tensor([[20., -14.], [-14., 10.]]))
    tensor([20.,  2.])
    """
    return ((removed @ q) * removed).sum(1)


def removal_order(q: Tensor, n: int) -> Tensor:
    """The n channels to go one by one: each adds least to the error of those that are gone. q [c, c] -> int64 [n]

    >>> removal_order(torch.tensor([[3., 0., -2.], [0., 4., 0.], [-2., 0., 4.]]), 2)  # 3; then 4 + 0 or 4 - 2 * 2
    tensor([0, 2])
    """
    order, adds = torch.empty(n, dtype=torch.long), q.diagonal().clone()
    for step in range(n):
        order[step] = j = adds.argmin()
        adds += 2 * q[j]
        adds[j] = torch.inf
    return order


def dense(group: FilterGroup, net: nn.Module) -> list[Slice]:
    """The layers that read the filters of a group, each of their own filters all of them: not the depthwise ones, and
    not transposed convs, whose outputs are no products of patches."""
    return [s for s in group.readers() if module_groups(layer := net.get_submodule(s.module)) == 1
            and not isinstance(layer, TRANSPOSED)]


def check_read(name: str, groups: Iterable[FilterGroup], net: nn.Module) -> None:
    """Raises UserError where a group has no layer to measure its filters in."""
    if alone := [g.name for g in groups if not dense(g, net)]:
        raise UserError(f"{name} measures filters in the layers that read them, and no conv or linear layer reads all "
                        f"of {', '.join(alone)}: leave them out (method.allocation.skip)")


def weights(module: nn.Module, where: Slice) -> Tensor:
    """W [n, c, k]: what a layer does with the channels of each filter."""
    weight = module.weight.detach()
    weight = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    return weight[:, where.index.flatten().to(weight.device)].reshape(len(weight), len(where.index), -1)


def cut(net: nn.Module, probe: Probe) -> tuple[Plan, list[FilterGroup]]:
    """The plan that has made `net` of the probe's, and the groups that have lost filters by it."""
    plan = notes(net)["history"][-1]
    return plan, [g for g in probe.groups if g.name in plan and not plan[g.name].all()]


def places(where: Slice, keep: Tensor, plan: Plan, net: nn.Module) -> Tensor:
    """Where the inputs of the filters that stay lie once a plan is carried out. net: before it -> int64 [kept, k]"""
    trace = traced(net)
    at = kept(trace.axes[where.module, "in"], trace.keep(plan)).cumsum(0) - 1
    return at[where.index[keep]]


def put(w: Tensor, where: Slice, plan: Plan, keep: Tensor, net: nn.Module, before: nn.Module) -> Tensor:
    """Makes `w` the weights that read a group in the smaller net: of what stays, and of all outputs there were before.
    w [n, kept k] -> which outputs are left, bool [n]"""
    out = kept(traced(before).axes[where.module, "out"], traced(before).keep(plan))
    at, weight = places(where, keep, plan, before).flatten(), net.get_submodule(where.module).weight
    weight[:, at] = w[out].reshape(len(weight), len(at), *weight.shape[2:]).to(weight)
    return out


class Reader:
    """Collects G of eq. 2 for the channels of one group, as one layer reads them."""

    def __init__(self, module: nn.Module, where: Slice, points: int, generator: torch.Generator):
        self.module, self.where, self.points, self.generator = module, where, points, generator
        self.gram, self.rows = 0.0, 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        for images in inputs[0].split(self._at_once(inputs[0])):
            self.take(self.inputs(images))

    def take(self, x: Tensor) -> None:
        """x: [N, c k]"""
        self.gram, self.rows = self.gram + x.T @ x, self.rows + len(x)

    def _at_once(self, x: Tensor) -> int:
        """Images whose unfolded inputs fit into MEMORY; with few random points of each all do."""
        if self.points or isinstance(self.module, nn.Linear):
            return max(1, len(x))
        positions = x[0, 0].numel() / math.prod(self.module.stride)  # about, as padding adds some
        size = positions * self.where.index.numel() * math.prod(self.module.kernel_size) * x.element_size()
        return max(1, min(len(x), int(MEMORY / size)))

    def inputs(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """[B, C, ...] -> [N, c k]: the inputs of sampled outputs (at: which, [B, points]), channels of one filter side
        by side."""
        channels = self.where.index.flatten().to(x.device)
        if isinstance(self.module, nn.Linear):
            return x[..., channels].flatten(0, -2)
        x = x[:, channels]
        if any(p != 0 for p in self.module._reversed_padding_repeated_twice):
            mode = self.module.padding_mode
            x = F.pad(x, self.module._reversed_padding_repeated_twice, "constant" if mode == "zeros" else mode)
        for dim, (size, step, gap) in enumerate(zip(self.module.kernel_size, self.module.stride, self.module.dilation,
                                                    strict=True), 2):
            x = x.unfold(dim, gap * (size - 1) + 1, step)[..., ::gap]
        patches = x.movedim(1, len(self.module.kernel_size) + 1)  # a view: [B, positions ..., c, kernel ...]
        shape = patches.shape[1: len(self.module.kernel_size) + 1]
        total = shape.numel()
        if not 0 < self.points < total:
            return patches.flatten(0, len(shape)).flatten(1)
        at = (self.draw(len(x), total) if at is None else at).flatten()
        batch = torch.arange(len(x)).repeat_interleave(self.points)
        return patches[(batch, *torch.unravel_index(at, shape))].flatten(1)

    def draw(self, images: int, positions: int) -> Tensor:
        """Random positions of each image, [images, points]"""
        return torch.randint(positions, (images, self.points), generator=self.generator)

    def matrix(self) -> Tensor:
        return error_matrix((self.gram / self.rows).cpu().double(), weights(self.module, self.where).cpu().double())


class OutputError(Criterion):
    """Q_ii of eq. 2: the error in the layers that read a filter's channel when it alone goes.

    n_samples    training images the inputs are taken from
    points       random output positions of each feature map (0 = all)
    refresh      measure the net anew in every round; false: only the net before the first round
    """

    reader: type[Reader] = Reader       # what collects

    def __init__(self, n_samples: int = 5000, points: int = 10, refresh: bool = True):
        if n_samples < 1 or points < 0:
            raise UserError(f"criterion: n_samples must be at least 1 and points at least 0, got {n_samples}, {points}")
        self.n_samples, self.points, self.refresh = n_samples, points, refresh

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        return {name: q.diagonal().float() for name, q in self.matrices(list(groups), probe).items()}

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        check_read(type(self).__name__, groups, probe.net)

    def matrices(self, groups: list[FilterGroup], probe: Probe) -> dict[str, Tensor]:
        """Q of each group, float64 [size, size] on the CPU; all groups in one pass over the images."""
        sizes = {g.name: g.size for g in groups}
        return {name: sum(each.values(), torch.zeros(sizes[name], sizes[name], dtype=torch.float64))
                for name, each in self.forms(groups, probe).items()}

    @torch.no_grad()
    def forms(self, groups: list[FilterGroup], probe: Probe) -> dict[str, dict[str, Tensor]]:
        """Group -> layer that reads it -> the part of Q that is its error; an auxiliary head may not have run."""
        sizes = {g.name: g.size for g in groups}
        if not self.refresh:                                      # the same groups, as they were at first
            probe = probe.original.look(probe)
            groups = [g for g in probe.groups if g.name in sizes]
        memo = probe.memo.setdefault((type(self).__name__, self.n_samples, self.points), {})
        if missing := [g for g in groups if g.name not in memo]:
            memo |= self._measure(missing, probe)
        if any(len(q) != size for name, size in sizes.items() for q in memo[name].values()):
            raise UserError("criterion.refresh=false needs rounds that cut each layer once (one_shot, layer_by_layer): "
                            "the filters of the first net are not those of this one any more")
        return {g.name: memo[g.name] for g in groups}

    def _measure(self, groups: list[FilterGroup], probe: Probe) -> dict[str, dict[str, Tensor]]:
        found = read(groups, probe, self.reader, self.points, self.n_samples)
        return {name: {r.where.module: r.matrix() for r in some} for name, some in found.items()}


def read(groups: list[FilterGroup], probe: Probe, kind: type[Reader], points: int,
         n_samples: int) -> dict[str, list[Reader]]:
    """Of each group, what the layers that read it have collected of images; an auxiliary head may not have run."""
    generator = probe.generator()
    found = {g.name: [kind(probe.net.get_submodule(s.module), s, points, generator) for s in dense(g, probe.net)]
             for g in groups}
    watch([probe.net], [r.module.register_forward_pre_hook(r) for some in found.values() for r in some], n_samples,
          probe)
    return {name: [r for r in some if r.rows] for name, some in found.items()}


def watch(nets: list[nn.Module], hooks: list[RemovableHandle], n_samples: int, probe: Probe) -> None:
    """Shows the nets, one after the other, batches of images while the hooks are on."""
    n = min(n_samples, len(probe.data.parts.train))
    try:
        with ExitStack() as modes:
            for net in nets:
                modes.enter_context(eval_mode(net))
            for x, _ in probe.data.plain(probe.batch_size, probe.seed, n, str(probe.example.device.type)):
                for net in nets:
                    net(x)
    finally:
        for hook in hooks:
            hook.remove()
