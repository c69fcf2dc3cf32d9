r"""Group sparse regularisation of outgoing weights.      Scardapane et al., Neurocomputing 241, 2017, arXiv:1607.00485

    R_l21(w) = sum_g sqrt(|g|) || g ||_2                          group lasso                (1)
    R(w)     = R_l21(w) + || w ||_1                               sparse group lasso         (2)
    L        = CE + lambda R(w);    a unit goes where || g ||_2 < threshold at the end       (3)
    g       <- max(0, 1 - eta lambda sqrt(|g|) / || g ||_2) g     after a step of size eta   (4)

    g        the weights that go out of one input or hidden unit; each bias is one as well        |g| weights
             of a conv: all that read one channel, W[:, c], [O kh kw]; of a linear layer behind a flattened map: those
             of all places of a channel

The sub-gradient of (1) is 0 at g = 0, as it has 1e-12 in its root; it only comes near zero, so that (3) needs a
threshold. (4) is exactly zero there: `proximal: true`, no part of the paper, then stands for (1) in the loss.

Needs: training.

Deviations: penalty and groups are known at second hand; convs, thresholds and schedules are a reconstruction. By
default channels are ranked by || g ||_2 and a rate goes (`allocation: dead` is (3)); their filters and batch norm go
with them. Scales and shifts of batch norm are not penalised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.methods.hgsr import GroupNorm
from reprune.pruning.allocation import Limits, choice, keep_best
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Scores, Step
from reprune.structure.groups import FilterGroup, Plan
from reprune.structure.notes import notes

EPS = 1e-12                             # inside the root of (1)
GROUPS = {"outgoing": "feature", "incoming": "neuron"}            # and what hgsr calls them

__all__ = ["Dead", "GroupNorm", "GroupSparse", "lasso", "outgoing", "shrink"]


def outgoing(w: Tensor, groups: int = 1, places: int = 1) -> Tensor:
    """The groups of a weight, a row each. [O, I / groups, ...] -> [I / places, |g|]

    groups: of a conv; places: inputs of a linear layer that are one channel.

    >>> outgoing(torch.tensor([[1., 2., 3., 4.], [5., 6., 7., 8.]]), places=2).tolist()
    [[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 7.0, 8.0]]
    >>> outgoing(torch.tensor([[[[1.]]], [[[2.]]]]), groups=2).tolist()      # depthwise: one filter each
    [[1.0], [2.0]]
    """
    inputs = w.shape[1] // places
    return w.reshape(groups, len(w) // groups, inputs, -1).transpose(1, 2).reshape(groups * inputs, -1)


def lasso(g: Tensor) -> Tensor:
    """Eq. 1. g: [groups, |g|] -> scalar.

    >>> lasso(torch.tensor([[3., 4., 0., 0.], [0., 0., 0., 1.]]))            # 2 * 5 + 2 * 1
    tensor(12.)
    """
    return g.shape[1] ** 0.5 * (g.square().sum(1) + EPS).sqrt().sum()


def shrink(g: Tensor, step: float) -> Tensor:
    """The factor of eq. 4, step = eta lambda. g: [groups, |g|] -> [groups].

    >>> shrink(torch.tensor([[3., 4., 0., 0.], [0., 0., 0., 1.], [0., 0., 0., 0.]]), 0.5)       # 1 - 0.5 * 2 / 5
    tensor([0.8000, 0.0000, 0.0000])
    """
    return (1 - step * g.shape[1] ** 0.5 / g.norm(dim=1).clamp_min(EPS)).clamp_min(0)


class GroupSparse:
    """The second term of eq. 3, over all convs and linear layers.

    weight      lambda >= 0
    with_l1     eq. 2, false: eq. 1 alone
    groups      "outgoing" | "incoming": the weights of each filter
    proximal    eq. 4 after every step in place of (1) in the loss; step size: the learning rate
    """

    def __init__(self, weight: float = 1e-4, with_l1: bool = True, groups: str = "outgoing", proximal: bool = False):
        if not 0 <= weight < float("inf"):
            raise UserError(f"group_sparse: weight (lambda) must be a number >= 0, got {weight}")
        choice("group_sparse: groups", groups, tuple(GROUPS))
        self.weight, self.with_l1, self.groups, self.proximal = weight, with_l1, groups, proximal

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        if not list(self.layers(probe.net)):
            raise UserError(f"group_sparse: {type(probe.net).__name__} has no nn.Conv2d or nn.Linear to penalise")

    def layers(self, net: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
        """Each conv and linear layer, and the groups of its weight [groups, |g|]."""
        trace = notes(net).get("trace")
        places = {s.module: s.index.shape[1] for g in (trace.groups if trace else ()) for s in g.readers()}
        for name, m in net.named_modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                yield m, m.weight.flatten(1) if self.groups == "incoming" else outgoing(
                    m.weight, getattr(m, "groups", 1), places.get(name, 1) if isinstance(m, nn.Linear) else 1)

    def __call__(self, step: Step) -> Tensor:
        total = []
        for m, g in self.layers(step.net):
            parts = [(g, m.weight)] + ([(m.bias.unsqueeze(1), m.bias)] if m.bias is not None else [])
            total += [lasso(part) for part, _ in parts if not self.proximal]
            total += [w.abs().sum() for _, w in parts if self.with_l1]
        return self.weight * torch.stack(total).sum() if total else step.logits.new_zeros(())

    @torch.no_grad()
    def after_step(self, net: nn.Module, rate: float) -> None:
        """Eq. 4 in place."""
        for m, g in self.layers(net) if self.proximal else ():
            factor, w = shrink(g, rate * self.weight), m.weight
            if self.groups == "incoming":
                w.mul_(factor.view(-1, *[1] * (w.dim() - 1)))
            elif isinstance(m, nn.Linear):
                w.mul_(factor.repeat_interleave(w.shape[1] // len(factor)))
            else:
                each = factor.view(m.groups, 1, -1).expand(-1, len(w) // m.groups, -1)
                w.mul_(each.reshape(len(w), -1, *[1] * (w.dim() - 2)))
            if m.bias is not None:
                m.bias.mul_(shrink(m.bias.unsqueeze(1), rate * self.weight))


@dataclass(kw_only=True)
class Dead(Limits):
    """Eq. 3: all filters whose score lies below `threshold`."""

    threshold: float = 1e-3

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        alive = {name: int((score >= self.threshold).sum()) for name, score in scores.items()}
        return {g.name: keep_best(scores[g.name], self.to_remove(alive[g.name], g, probe))
                for g in self.candidates(probe, scores)}
