r"""CACP: one agent for all compression rates.                                       Liu et al. 2020, arXiv:2009.09724

    state_l   = ( target, l, type, out, in, h, w, stride, kernel, weights, MACs_l, removed, rest, a_{l-1} )      (1)
    rate_l    = min( 1, max( a_l, duty / MACs_l ) ),   duty = target - ( removed + rest min(0.9, high) )         (2)
    reward    = top-1 / 100   of the net that all layers together make, for each step of the episode             (3)
    W'_S      = argmin || X W^T - X_S W'_S^T ||^2                                                                (4)

    target    fraction of the MACs that is to go; targets take turns, one an episode
    MACs_l    that go with all filters of layer l; removed, rest: fractions that have gone, and that later layers have
    a_l       the action: what fraction of the layer's filters goes
    X         what the next layer reads of the unpruned net, at ten random places of every image              [N, c k k]

A walk over the layers is an episode; the agent (DDPG: a deterministic actor, a critic, a replay buffer) sees the target
in its state, so that one search serves them all. The channels that the next layer reads with the smallest L1-norm go,
what stays is refitted by (4), and (3) is taken on held-out images. The best net of each target is kept; of a run it is
that of its own target, which is fine-tuned.

Features of (1) are scaled to 0 .. 1 over the layers, but those that are the same in all of them. The library is
stable-baselines3, on an environment of gymnasium: pip install 'reprune[rl]'.

Needs: images; held-out images and their labels; stable-baselines3.

Deviations: exploration is normal noise that is clipped, the authors' is a truncated normal; its start and decay are
theirs. The reward is taken on images held out of the training set. (2) counts what goes with a filter in all layers,
the authors count one layer. (4) has a small ridge. A tenth of the training images for (4) and batches of 64 for the
agent are a reconstruction. A run searches for itself: no agent is handed on to another run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.methods.output_error import check_read, dense
from reprune.pruning.allocation import choice, keep_best
from reprune.pruning.probe import Probe, eval_mode
from reprune.pruning.ranking import Goal
from reprune.pruning.sockets import Criterion, Scores, Transform
from reprune.structure.groups import FilterGroup, Plan


class ReadNorm(Criterion):
    """The L1-norm of the weights that read a filter's channel."""

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        check_read(type(self).__name__, groups, probe.net)

    def score(self, group: FilterGroup, probe: Probe) -> Tensor:
        return torch.stack([w.abs().sum(1) for w in group.kernels(probe.net)]).sum(0)


def scaled(features: Tensor) -> Tensor:
    """To 0 .. 1 over the layers; what is the same in all of them stays. [layers, features]

    >>> scaled(torch.tensor([[1., 16.], [1., 64.], [1., 32.]])).tolist()
    [[1.0, 0.0], [1.0, 1.0], [1.0, 0.3333333432674408]]
    """
    low, high = features.amin(0), features.amax(0)
    return torch.where(high > low, (features - low) / (high - low).where(high > low, 1), features)


def clamped(action: float, target: float, removed: float, rest: float, own: float, high: float) -> float:
    """Eq. 2, in MACs.

    >>> clamped(0.1, target=50, removed=10, rest=20, own=40, high=1)             # 50 - (10 + 18) = 22 of 40 must go
    0.55
    """
    return min(1.0, max(action, (target - (removed + rest * min(0.9, high))) / own if own else 0.0))


class Walk:
    """One episode, over and over. high: the largest fraction of a layer that an action can say."""

    def __init__(self, groups: list[FilterGroup], probe: Probe, room: list[int], high: float):
        self.groups, self.probe, self.room, self.high = groups, probe, room, high
        self.where = torch.tensor([[g.name for g in probe.groups].index(g.name) for g in groups])
        self.fixed = scaled(torch.tensor([self.features(at, g) for at, g in enumerate(groups)]))     # [layers, 10]
        self.begin(0.0)

    def begin(self, target: float) -> Tensor:
        """target: of the first net's MACs that are to go. -> the first state"""
        self.target, self.at, self.last = target, 0, 0.0
        self.counts = [0] * len(self.groups)
        return self.state()

    def features(self, at: int, group: FilterGroup) -> list[float]:
        """Those of (1) that no action changes, of the layer that reads the group."""
        where = dense(group, self.probe.net)[0]
        m, (h, w) = self.probe.net.get_submodule(where.module), self.shapes()[where.module]
        conv = not isinstance(m, nn.Linear)
        return [float(v) for v in (at, not conv, m.weight.shape[0], m.weight.shape[1], h, w, m.stride[0] if conv else 0,
                                   m.kernel_size[0] if conv else 1, m.weight.numel(), self.share(at))]

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Height and width of what each layer reads."""
        if "cacp shapes" not in self.probe.memo:
            found: dict[str, tuple[int, int]] = {}
            hooks = [m.register_forward_pre_hook(lambda _, x, name=name: found.__setitem__(
                name, (*x[0].shape[2:], 1, 1)[:2])) for name, m in self.probe.net.named_modules()
                     if isinstance(m, nn.Conv2d | nn.Linear)]
            with torch.no_grad(), eval_mode(self.probe.net):
                self.probe.net(self.probe.example)
            for hook in hooks:
                hook.remove()
            self.probe.memo["cacp shapes"] = found
        return self.probe.memo["cacp shapes"]

    def macs(self, counts: Sequence[float]) -> float:
        gone = torch.zeros(len(self.probe.groups)).index_add_(0, self.where, torch.tensor(counts, dtype=torch.float))
        return self.probe.costs.after(gone).macs

    def share(self, at: int) -> float:
        """MACs that go with all filters of a layer, of all."""
        alone = [g.size if i == at else 0 for i, g in enumerate(self.groups)]
        return (self.macs([0] * len(alone)) - self.macs(alone)) / self.probe.original.cost.macs

    def state(self) -> Tensor:
        """Eq. 1. -> [14]; of the last layer once more when all are done"""
        at = min(self.at, len(self.groups) - 1)
        later = [0] * (at + 1) + [g.size for g in self.groups[at + 1:]]
        whole, now = self.probe.original.cost.macs, self.macs(self.counts)
        rest = now - self.macs([max(a, b) for a, b in zip(self.counts, later, strict=True)])
        changing = torch.tensor([(whole - now) / whole, rest / whole, self.last])
        return torch.cat([torch.tensor([self.target]), self.fixed[at], changing])

    def act(self, rate: float) -> bool:
        """The layer loses about that fraction of its filters, more where later ones could not make up. -> is it all?"""
        group, whole, now = self.groups[self.at], self.probe.original.cost.macs, self.macs(self.counts)

        def after(*more: tuple[int, float]) -> float:
            return self.macs([dict(more).get(i, n) for i, n in enumerate(self.counts)])

        later = [(i, g.size) for i, g in enumerate(self.groups) if i > self.at]
        self.last = clamped(rate, self.target * whole, whole - now, now - after(*later),
                            now - after((self.at, group.size)), self.high)
        self.counts[self.at] = min(math.ceil(self.last * group.size - 1e-9), self.room[self.at])
        self.at += 1
        return self.at == len(self.groups)


@dataclass(kw_only=True)
class Conditional(Goal):
    """The best of a search for several targets, at the one that `macs` names.

    targets         fractions of the MACs that go; 1 - macs is one of them
    warmup          episodes with random actions
    episodes        after these
    low, high       of the actions
    action_is       "prune": what fraction goes | "preserve": what fraction stays
    reward          "acc" (3) | "moving_baseline": (top-1 - b) / 100, b of each target <- 0.999 b + 0.001 top-1
    target_order    "round_robin" | "random"
    delta, decay    of the noise: its deviation after warm-up, and the factor of each episode
    repair          of the method, for every net that is tried
    """

    targets: Sequence[float] = (0.3, 0.5, 0.7)
    warmup: int = 100
    episodes: int = 800
    low: float = 0.05
    high: float = 1.0
    action_is: str = "prune"
    reward: str = "acc"
    target_order: str = "round_robin"
    delta: float = 0.5
    decay: float = 0.95
    repair: Mapping[str, Transform] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("allocation.action_is", self.action_is, ("prune", "preserve"))
        choice("allocation.reward", self.reward, ("acc", "moving_baseline"))
        choice("allocation.target_order", self.target_order, ("round_robin", "random"))
        if self.warmup < 1 or self.episodes < 1 or not 0 <= self.low < self.high <= 1 or self.delta < 0 \
                or not 0 < self.decay <= 1 or not all(0 < t < 1 for t in self.targets):
            raise UserError("allocation: warmup and episodes must be at least 1, 0 <= low < high <= 1, delta at least "
                            "0, decay above 0 and at most 1, targets between 0 and 1")
        if self.unit != "macs" or not any(math.isclose(1 - self.macs, t) for t in self.targets):
            raise UserError(f"allocation.macs must be what one of allocation.targets leaves, of {list(self.targets)}, "
                            f"got {self.macs}")

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        if missing := [name for name in ("gymnasium", "stable_baselines3") if find_spec(name) is None]:
            raise UserError(f"cacp needs {' and '.join(missing)}: pip install 'reprune[rl]'")
        check_read("cacp", groups, probe.net)
        probe.check_held_out("allocation")

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        from reprune.methods.cacp_agent import search

        groups = self.candidates(probe, scores)
        self.check(groups, probe)
        most = self.high if self.action_is == "prune" else 1 - self.low
        walk = Walk(groups, probe, [self.room(g, probe) for g in groups], most)
        tried: dict[tuple[int, ...], float] = {}

        def top1(counts: list[int]) -> float:
            if (key := tuple(counts)) not in tried:
                tried[key] = probe.accuracy(self.plan(groups, counts, scores, probe), (self.repair or {}).values())
            return tried[key]

        best = search(walk, top1, self, [t * probe.share for t in self.targets], probe.seed)
        counts = best[min(range(len(self.targets)), key=lambda i: abs(self.targets[i] - 1 + self.macs))]
        plan = self.plan(groups, counts, scores, probe)
        if probe.cost(plan).macs > self.budget(probe):
            raise UserError(f"a budget of {self.kept:.4g} of the macs cannot be met: with every candidate layer at its "
                            f"floor {probe.cost(plan).macs / probe.original.cost.macs:.4g} remain; allow more groups")
        return plan

    def plan(self, groups: list[FilterGroup], counts: list[int], scores: Scores, probe: Probe) -> Plan:
        return {g.name: keep_best(scores[g.name], self.to_remove(g.size - n, g, probe) if self.multiple > 1 else n)
                for g, n in zip(groups, counts, strict=True)}
