r"""SNPFI: filters as players of a game, and how they interact.                     Tang et al. 2023, arXiv:2307.00758

    v(S)     = mean_x log p( y | x; S )                                                       (1)
    phi_i    = E_S [ v(S + i) - v(S) ]                                     importance         (2)
    D(i,j,S) = v(S + i + j) - v(S + i) - v(S + j) + v(S)                                      (3)
    U_l      = mean_{ij} | E_S D(i,j,S) | / | v(M) - v({}) |               utilization        (4)
    rho_l    = clip( s (1 - U_l / max_k U_k), 0, rho_max )                 sparsity           (5)
    L_rec    = sum_l mean_{ijS} ( D(i,j,S) - D_original(i,j,S) )^2         recovery           (6)

    S, M     filters of layer l that take part, all of its m; the others are zero where they are read, that is behind
             batch norm and activation
    s        such that a budget of MACs is met: layers whose filters hardly interact lose more

The filters of the smallest phi go, of all layers at once; then (6) is minimised by Adam over all weights, in eval mode.

S is drawn by its size, uniform over 0 .. m - 1, and then uniformly: it is what stands before i in a random order of the
filters. So one order serves all of them, taken two at a time (i, j): both of (2) in both orders, and (3), for three
values v a pair where they would need eight. Over an order, the terms of (2) add up to v(M) - v({}). An odd filter is
paired with a player that does nothing. Orders are drawn over the filters sorted by their norm: how a net happens to
list them does not matter.

Needs: images, labels, gradients.

Deviations: a reconstruction, which cannot be called faithful. Known from the abstract are the two notions and what each
is for, the game with a log-probability as its value, and recovery by the difference of interactions. All formulas and
constants are ours. (6) goes over one layer a step. Pairs are as many as the contexts give: m a layer for the default 16
of each filter and 4 of each pair. Widths that an addition couples play no game by default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from reprune.errors import UserError
from reprune.methods.coalitions import coalitions, contributions, orders, worth
from reprune.methods.output_error import cut
from reprune.pruning.allocation import choice, floored, keep_best
from reprune.pruning.probe import Probe, eval_mode
from reprune.pruning.ranking import Goal
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup, Plan, trace
from reprune.structure.suffix import Suffix

IMAGES = 64                             # at a time: what a layer reads of them stays in the cache
SETS = 256                              # coalitions whose logits are kept at a time


class Game(Criterion):
    """Eq. 2; and (4), for the allocation.

    n_samples       labelled training images
    contexts        S for each filter, two of each order
    pair_contexts   S for each pair
    value           "log_p" (1) | "log_odds": log( p / (1 - p) )
    images          at most so many run at once: bounds the memory
    """

    def __init__(self, n_samples: int = 256, contexts: int = 16, pair_contexts: int = 4, value: str = "log_p",
                 images: int = 512):
        choice("criterion.value", value, ("log_p", "log_odds"))
        if min(n_samples, contexts // 2, pair_contexts, images) < 1:
            raise UserError("criterion: n_samples, pair_contexts and images must be at least 1, contexts at least 2, "
                            f"got {n_samples}, {pair_contexts}, {images}, {contexts}")
        self.n_samples, self.contexts, self.pair_contexts = n_samples, contexts, pair_contexts
        self.value, self.images = value, images

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        return {name: phi for name, (phi, _) in self.play(list(groups), probe).items()}

    @torch.no_grad()
    def play(self, groups: list[FilterGroup], probe: Probe) -> dict[str, tuple[Tensor, float]]:
        """Of each group: phi [m] and U."""
        memo = probe.memo.setdefault(("snpfi", self.n_samples, self.contexts, self.pair_contexts, self.value), {})
        for group in track([g for g in groups if g.name not in memo], "coalitions", transient=True):
            memo[group.name] = self.of(group, probe)
        return {g.name: memo[g.name] for g in groups}

    def of(self, group: FilterGroup, probe: Probe) -> tuple[Tensor, float]:
        drawn = orders(group.size, self.contexts // 2, self.pair_contexts, probe.generator())
        sets = torch.stack([coalitions(order) for order in drawn])               # [orders, sets, players]
        sorted_ = torch.cat([f.double() for f in group.filters(probe.net)], 1).norm(dim=1).argsort().cpu()
        gone = torch.empty(*sets.shape[:2], group.size, dtype=torch.bool)
        gone[..., sorted_] = ~sets[..., : group.size]
        v = self.values(group, gone.flatten(0, 1), probe).view(len(drawn), -1)
        found = [contributions(row, order) for row, order in zip(v, drawn, strict=True)]
        phi = torch.empty(group.size, dtype=v.dtype)
        phi[sorted_] = torch.stack([each for each, _ in found]).mean(0)[: group.size]
        return phi, self.utilization(torch.stack([self.by_pair(order, d) for order, (_, d) in
                                                  zip(drawn, found, strict=True)]), v, group.size)

    def by_pair(self, order: Tensor, d: Tensor) -> Tensor:
        """In the order of the pairs' first player, which the orders of the same pairs share; 0 for the odd one."""
        real = (order < order.numel()).all(1)
        return d.where(real, 0)[order.amin(1).argsort()]

    def utilization(self, d: Tensor, v: Tensor, m: int) -> float:
        """Eq. 4. d [orders, pairs], v [orders, sets]"""
        each = torch.stack([part.mean(0).abs() for part in d.split(self.pair_contexts)])      # [pairings, pairs]
        return float(each.sum(1).mean() / max(1, m // 2) / (v[0, -1] - v[0, 0]).abs().clamp_min(1e-12))

    def values(self, group: FilterGroup, gone: Tensor, probe: Probe) -> Tensor:
        """v of sets of silent filters. bool [sets, m] -> float64 [sets]"""
        n, total = min(self.n_samples, len(probe.data.parts.train)), 0.0
        with eval_mode(probe.net):
            drawn = probe.data.plain(min(IMAGES, self.images), probe.seed, n, str(probe.example.device.type))
            for suffix in Suffix.over(probe.net, drawn, self.images):
                parts = [worth(suffix.logits_without(group, part).double(), suffix.y, self.value).sum(1)
                         for part in gone.split(SETS)]
                total = total + torch.cat(parts).cpu() / n
        return total


@dataclass(kw_only=True)
class Utilization(Goal):
    """Eq. 5, for a budget.

    game      the criterion that has measured U
    rule      "inverse" (5) | "uniform": the same rho in all layers
    rho_max   of a layer
    """

    game: Criterion
    rule: str = "inverse"
    rho_max: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("allocation.rule", self.rule, ("inverse", "uniform"))
        if not 0 < self.rho_max < 1:
            raise UserError(f"allocation.rho_max must be between 0 and 1, got {self.rho_max}")

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        if not isinstance(self.game, Game):
            raise UserError("allocation.game must be a reprune.methods.snpfi.Game, which measures interactions; "
                            f"it is a {type(self.game).__name__}: choose another method/allocation")

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        groups = self.candidates(probe, scores)
        self.check(groups, probe)
        strength = torch.tensor([u for _, u in self.game.play(groups, probe).values()], dtype=torch.float64)
        weight = 1 - strength / strength.max() if self.rule == "inverse" else torch.ones_like(strength)
        columns = [g.name for g in probe.groups]
        where = torch.tensor([columns.index(g.name) for g in groups])

        def counts(s: float) -> list[int]:
            rho = (s * weight).clamp(0, self.rho_max).tolist()
            return [self.to_remove(g.size - floored(r * g.size), g, probe) for g, r in zip(groups, rho, strict=True)]

        def spent(s: float) -> int:
            gone = torch.zeros(len(columns)).index_add_(0, where, torch.tensor(counts(s)).float())
            return getattr(probe.costs.after(gone), self.unit)

        low, high = 0.0, self.rho_max / float(weight[weight > 0].min()) if (weight > 0).any() else 0.0
        if spent(high) > self.budget(probe):
            raise UserError(f"a budget of {self.kept:.4g} of the {self.unit} cannot be met: the layer whose filters "
                            "interact most loses none, the others at most method.allocation.rho_max: raise it or the "
                            "budget, or choose method.allocation.rule=uniform")
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if spent(middle) <= self.budget(probe) else (middle, high)
        return {g.name: keep_best(scores[g.name], n) for g, n in zip(groups, counts(high), strict=True)}


class Interactions:
    """A repair: eq. 6, one layer a step.

    steps       of Adam
    rate        its learning rate
    triples     (i, j, S) a step
    batch       images a step
    ce_weight   cross-entropy added to (6)
    value       as of the criterion
    """

    def __init__(self, steps: int = 1000, rate: float = 1e-4, triples: int = 4, batch: int = 64,
                 ce_weight: float = 0.0, value: str = "log_p"):
        choice("repair.value", value, ("log_p", "log_odds"))
        if steps < 0 or min(triples, batch) < 1 or rate <= 0 or ce_weight < 0:
            raise UserError("repair: steps and ce_weight must be at least 0, triples and batch at least 1, rate above "
                            f"0, got {steps}, {ce_weight}, {triples}, {batch}, {rate}")
        self.steps, self.rate, self.triples, self.batch = steps, rate, triples, batch
        self.ce_weight, self.value = ce_weight, value

    def __call__(self, net: nn.Module, probe: Probe) -> nn.Module:
        plan, cut_ = cut(net, probe)
        now = {g.name: g for g in trace(net, probe.example)}
        pairs = [(g, now[g.name]) for g in cut_ if now[g.name].size > 1]
        if not pairs:
            return net
        adam, generator = torch.optim.Adam(net.parameters(), self.rate), probe.generator()
        with eval_mode(net), eval_mode(probe.net), torch.enable_grad():
            before, after = fuse(probe.net), fx.symbolic_trace(net)
            for x, y in track(islice(self.batches(probe), self.steps), "interactions", self.steps, transient=True):
                was, is_ = pairs[int(torch.randint(len(pairs), (1,), generator=generator))]
                sets = quadruples(is_.size, self.triples, generator)
                wider = torch.zeros(len(sets), was.size, dtype=torch.bool)
                wider[:, plan[was.name]] = sets                   # who has gone takes part in neither net
                with torch.no_grad():
                    wanted = self.interaction(Suffix(probe.net, x, y, len(sets) * len(y), before), was, wider)
                suffix = Suffix(net, x, y, len(sets) * len(y), after)
                loss = (self.interaction(suffix, is_, sets) - wanted).square().mean()
                if self.ce_weight:
                    loss = loss + self.ce_weight * F.cross_entropy(suffix.logits, y)
                adam.zero_grad()
                loss.backward()
                adam.step()
        adam.zero_grad()
        return net

    def interaction(self, suffix: Suffix, group: FilterGroup, sets: Tensor) -> Tensor:
        """Eq. 3 on a batch. sets: bool [4 triples, m], who takes part -> [triples]"""
        both, first, second, none = worth(suffix.logits_without(group, ~sets), suffix.y,
                                          self.value).mean(1).view(-1, 4).unbind(1)
        return both - first - second + none

    def batches(self, probe: Probe) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the training images, drawn anew each time round."""
        for turn in count():
            yield from probe.data.plain(self.batch, probe.seed + turn, None, str(probe.example.device.type))


def quadruples(m: int, n: int, generator: torch.Generator) -> Tensor:
    """S + i + j, S + i, S + j and S of n random triples. -> bool [4 n, m]

    >>> quadruples(5, 2, torch.Generator().manual_seed(0)).view(2, 4, 5).int().sum(2).diff()         # sizes
    tensor([[-1,  0, -1],
            [-1,  0, -1]])
    """
    order = torch.rand(n, m, generator=generator).argsort(1)      # a random order of the players, each time
    size = torch.randint(m - 1, (n, 1), generator=generator)
    place = order.argsort(1)                                      # of each player in it
    s, i, j = place < size, place == size, place == size + 1
    return torch.stack([s | i | j, s | i, s | j, s], 1).flatten(0, 1)
