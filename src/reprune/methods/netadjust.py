r"""Network Adjustment: widths by how well a layer uses its FLOPs.              Chen et al., CVPR 2020, arXiv:2004.02767

    FUR_l = mean [ loss with channels of l dropped at random ] - loss without                             (1)
    p_l   = base_drop (mean_j c_j dF/dc_j) / (c_l dF/dc_l)         the same FLOPs in every layer          (2)
    c_l  <- c_l + a_i c_l^0      for the k layers of the highest (1),   a_i = max(alpha - decay i, 0)     (3)
    c_l  <- c_l - a_i c_l^0      for the k of the lowest,               k = round(n - t decay_n)
    c    <- s c                  such that F(c) = F(c^0), to 1 %                                          (4)

    c_l, c_l^0    filters of layer l now, and at first
    F        multiply-adds of the net
    i, t     rank of a layer among those k, from 0; iteration

A search at constant FLOPs, and no pruning: in every round the net of the widths so far is trained with channel dropout,
(1) is taken on held-out images, the widths change and a net of these is trained from fresh weights. A plan is one of a
wider net of the same architecture: `Widths` makes that and takes out what is too much.

    out_bc <- out_bc m_bc / (1 - p),   m_bc ~ Bernoulli(1 - p)     channel dropout, behind batch norm     (5)

While the net trains, p rises linearly with the epochs and with depth up to `rate`. Parameters may grow: compare at
equal FLOPs.

Needs: held-out images and their labels, training.

Deviations: the authors' block outputs have widths of their own and are padded to the widest; here layers that an
addition couples share one, and are dropped and adjusted together. The first (1) is that of the baseline, trained
without dropout. The final net is trained without the held-out images. Constants for ImageNet are not known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reprune import models
from reprune.errors import UserError
from reprune.pruning.allocation import Limits
from reprune.pruning.probe import Probe, evaluate
from reprune.pruning.sockets import Scores, Step
from reprune.structure.groups import FilterGroup, Plan, Slice, trace
from reprune.structure.notes import notes
from reprune.structure.surgery import remove


def drop(out: Tensor, index: Tensor, p: float | Tensor, draws: Tensor) -> Tensor:
    """Eq. 5 for some channels. out [B, C, ...], index [size, k], draws: uniform [B, size] -> [B, C, ...]

    >>> drop(torch.ones(1, 3), torch.tensor([[0], [2]]), 0.5, torch.tensor([[0.7, 0.2]]))
    tensor([[2., 1., 0.]])
    """
    mask = torch.ones_like(out[:, :, *[0] * (out.dim() - 2)])     # [B, C]
    mask[:, index] = ((draws >= p).to(out) / (1 - p)).unsqueeze(2)
    return out * mask.view(*mask.shape, *[1] * (out.dim() - 2))


def adjusted(c: Tensor, first: Tensor, fur: Tensor, k: int, alpha: float, decay: float) -> Tensor:
    """Eq. 3. c, c^0, FUR [layers] -> [layers]

    >>> adjusted(torch.full((4,), 10.), torch.full((4,), 10.), torch.tensor([3., 1., 4., 2.]), 2, 0.2, 0.1)
    tensor([11.,  8., 12.,  9.])
    """
    change, steps = torch.zeros_like(c), (alpha - decay * torch.arange(k)).clamp_min(0).to(c)
    order = fur.argsort(stable=True)
    change[order[len(c) - k:].flip(0)] = steps
    change[order[:k]] -= steps
    return c + change * first


@dataclass(kw_only=True)
class Adjust(Limits):
    """Eq. 1 to 4. The plan is one of a net that is so many times as wide: of each layer, the first filters stay.

    times                     (1) is a mean over so many passes over the held-out images
    base_drop                 of (2)
    update_num, update_decay  n and decay_n of (3)
    alpha, alpha_decay        of (3)
    """

    times: int = 5
    base_drop: float = 0.05
    update_num: float = 6
    update_decay: float = 0.5
    alpha: float = 0.15
    alpha_decay: float = 0.01
    min_filters: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times < 1 or not 0 < self.base_drop < 1 or self.update_num < 1 or self.alpha <= 0 \
                or min(self.update_decay, self.alpha_decay) < 0:
            raise UserError("allocation: times and update_num must be at least 1, base_drop between 0 and 1, alpha "
                            f"above 0, decays at least 0, got {self.times}, {self.update_num}, {self.base_drop}, "
                            f"{self.alpha}, {self.update_decay}, {self.alpha_decay}")

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        probe.check_held_out("allocation")

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        groups, turn = self.candidates(probe, scores), probe.carried.get("netadjust", 0)
        probe.carried["netadjust"] = turn + 1
        first = torch.tensor([float(probe.original.sizes[g.name]) for g in groups])
        now = torch.tensor([float(g.size) for g in groups])
        k = min(max(1, round(self.update_num - turn * self.update_decay)), len(groups) // 2)
        wanted = adjusted(now, first, self.utilization(groups, probe), k, self.alpha, self.alpha_decay)
        widths = self.scaled(groups, wanted.clamp_min(self.min_filters), first, probe)
        times = int((widths / first).max()) + 1                   # so wide that some always go
        return {g.name: torch.arange(times * n) < width
                for g, n, width in zip(groups, first.tolist(), widths.tolist(), strict=True)}

    def chances(self, groups: list[FilterGroup], probe: Probe) -> list[float]:
        """Eq. 2; F is of second degree in each width."""
        columns = [g.name for g in probe.groups]

        def macs(name: str, more: int) -> int:
            return probe.costs.after(-more * torch.tensor([float(c == name) for c in columns])).macs

        share = [g.size * (macs(g.name, 1) - macs(g.name, -1)) / 2 for g in groups]
        return [min(self.base_drop * sum(share) / len(share) / s, 0.9) for s in share]

    @torch.no_grad()
    def utilization(self, groups: list[FilterGroup], probe: Probe) -> Tensor:
        """Eq. 1 of each group. -> [groups]"""
        generator, images = probe.generator(), probe.held_out(probe.batch_size)
        without = evaluate(probe.net, images)[0]
        found = []
        for group, p in zip(groups, self.chances(groups, probe), strict=True):
            with dropping(probe.net, group, p, generator):
                found.append(sum(evaluate(probe.net, images)[0] - without for _ in range(self.times)) / self.times)
        return torch.tensor(found)

    def scaled(self, groups: list[FilterGroup], wanted: Tensor, first: Tensor, probe: Probe) -> Tensor:
        """Eq. 4 by bisection. c, c^0 [groups] -> filters of each group, int64 [groups]"""
        columns, goal, m = [g.name for g in probe.groups], probe.original.cost.macs, self.multiple
        where = torch.tensor([columns.index(g.name) for g in groups])
        sizes = torch.tensor([g.size for g in groups])
        floor = ((self.min_keep * first).clamp_min(self.min_filters) / m).ceil() * m

        def rounded(s: float) -> Tensor:
            return ((s * wanted / m).round() * m).maximum(floor).long()

        def spent(s: float) -> int:
            return probe.costs.after(torch.zeros(len(columns)).index_add_(0, where, (sizes - rounded(s)).float())).macs

        low, high = 0.0, 1.0
        while spent(high) < goal:
            high *= 2
        for _ in range(20):
            middle = (low + high) / 2
            if abs(spent(middle) / goal - 1) <= 0.01:
                break
            low, high = (low, middle) if spent(middle) > goal else (middle, high)
        return rounded(middle)


def layers(net: nn.Module, group: FilterGroup) -> list[Slice]:
    """Where channels of a group are dropped: at its batch norms, or at its convs where there are none."""
    return group.norms(net) or group.producers(net)


@contextmanager
def dropping(net: nn.Module, group: FilterGroup, p: float, generator: torch.Generator) -> Iterator[None]:
    """Eq. 5 in one group, in eval mode."""
    with ExitStack() as hooks:
        for s in layers(net, group):
            hook = net.get_submodule(s.module).register_forward_hook(dropped(s.index, p, generator))
            hooks.callback(hook.remove)
        yield


def dropped(index: Tensor, p: float, generator: torch.Generator | None = None) -> Callable[..., Tensor | None]:
    """Eq. 5 as a hook: with a generator in eval mode, without one while the net trains."""
    def hook(module: nn.Module, _: tuple, out: Tensor) -> Tensor | None:
        if module.training is not (generator is None):
            return None
        draws = torch.rand(len(out), len(index), generator=generator, device=None if generator else out.device)
        return drop(out, index.to(out.device), p, draws.to(out.device))
    return hook


class ChannelDropout:
    """A penalty of 0, which drops channels while the net trains: p = rate (share of the epochs) (depth / layers).

    rate     of the last epoch and layer
    deeper   false: the same in all layers
    """

    def __init__(self, rate: float = 0.05, deeper: bool = True):
        if not 0 <= rate < 1:
            raise UserError(f"netadjust: rate must be at least 0 and below 1, got {rate}")
        self.rate, self.deeper = rate, deeper
        self.hooks: list[RemovableHandle] = []

    def before_epoch(self, net: nn.Module, share: float) -> None:
        for hook in self.hooks:
            hook.remove()
        groups = trace(net, torch.zeros(1, *notes(net)["input_shape"], device=next(net.parameters()).device))
        order = {name: at for at, (name, _) in enumerate(net.named_modules())}
        found = sorted((s for g in groups for s in layers(net, g)), key=lambda s: order[s.module])
        depth = {name: at for at, name in enumerate(dict.fromkeys(s.module for s in found), 1)}
        self.hooks = [net.get_submodule(s.module).register_forward_hook(
            dropped(s.index, self.rate * share * (depth[s.module] / len(depth) if self.deeper else 1)))
            for s in found]

    def __call__(self, step: Step) -> Tensor:
        return step.logits.new_zeros(())


class Widths:
    """The surgery: a net with as many filters of each group as a plan says, cut out of a wider one of the same
    architecture. Its weights are fresh."""

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        model = notes(probe.net).get("model") or {}
        if "width" not in inspect.signature(models.BUILDERS.get(model.get("_target_"), lambda: None)).parameters:
            raise UserError(f"netadjust widens layers, and {model.get('_target_', type(probe.net).__name__)} has no "
                            "option `width`: choose a CIFAR resnet or vgg (model=resnet20, model=vgg16)")

    def __call__(self, plan: Plan, probe: Probe) -> nn.Module:
        first, model = probe.original.sizes, notes(probe.original.net)["model"]
        name, mask = next(iter(plan.items()))
        with torch.random.fork_rng():
            torch.manual_seed(probe.seed)
            wide = models.build({**model, "width": len(mask) // first[name] * model.get("width", 1)})
        now = {g.name: g.size for g in probe.groups}
        rest = {g.name: torch.arange(g.size) < now[g.name] for g in trace(wide, probe.example.cpu())}
        net = remove(wide, {**rest, **plan}, check=False)
        return net.to(probe.example.device, memory_format=torch.channels_last)
