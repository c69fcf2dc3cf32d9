r"""Filter importance from batch norm alone.                  Oh et al., WACV 2022, arXiv:2112.01155

    z ~ N(beta, gamma^2),  y = max(z, 0),  s = |gamma|,  r = beta / s                                (1)
    mean            E[y]    = s phi(r) + beta Phi(r)                                                 (2)
    second_moment   E[y^2]  = (gamma^2 + beta^2) Phi(r) + beta s phi(r)                              (3)
    std             sqrt( E[y^2] - E[y]^2 )                                                          (4)
    active          P(y > 0) = Phi(r)                                                                (5)

    gamma, beta     scale and shift of the batch norm behind a filter           [C]
    phi, Phi        density and distribution function of the standard normal

The score of a filter is one of (2) to (5), divided by the mean of its layer; no image is looked at. The lowest of the
whole net go (`allocation: global`, at least a tenth of each layer stays), with or without fine-tuning after it.

Needs: weights; batch norm.

Deviations: a reconstruction. Known from the abstract is that the parameters of batch norm, as the distribution of what
an activation gives out, tell the importance without data. The model (1), the statistic, weights of the next layer, the
normalisation, the ranking over layers and the schedule are ours, each a knob: name them with every result. Where no
ReLU follows (the last conv of a residual block) the formulas do not hold: inner widths only; any other activation that
follows is taken for one. A channel that passes several batch norms has the mean of their statistics. Nothing is added
to the next layer for the mean that goes. An untrained batch norm (gamma 1, beta 0) makes all filters equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.methods.slimming import scaled
from reprune.pruning.probe import Probe
from reprune.pruning.ranking import NORMALIZERS
from reprune.pruning.sockets import Criterion
from reprune.structure.groups import FilterGroup

FLAT = 1e-12                            # below this, a channel is the constant beta


def activity(gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E[y], E[y^2], P(y > 0) of eq. 2, 3, 5. [C] twice -> [C] three times

    >>> mean, square, active = activity(torch.tensor([-1., 0., 0.]), torch.tensor([0., 3., -3.]))
    >>> mean                                                      # 1 / sqrt(2 pi); a constant 3; never active
    tensor([0.3989, 3.0000, 0.0000])
    >>> square, active
    (tensor([0.5000, 9.0000, 0.0000]), tensor([0.5000, 1.0000, 0.0000]))
    """
    s, flat = gamma.abs(), gamma.abs() < FLAT
    r = beta / s.masked_fill(flat, 1)
    density, below = (-r.square() / 2).exp() / math.sqrt(2 * math.pi), torch.special.ndtr(r)
    mean = s * density + beta * below
    square = (s.square() + beta.square()) * below + beta * s * density
    constant = beta.clamp_min(0)
    return (torch.where(flat, constant, mean), torch.where(flat, constant.square(), square),
            torch.where(flat, (beta > 0).to(beta), below))


STATS = {
    "mean": lambda mean, square, active: mean,
    "second_moment": lambda mean, square, active: square,
    "std": lambda mean, square, active: (square - mean.square()).clamp_min(0).sqrt(),
    "active": lambda mean, square, active: active,
}


class BNTells(Criterion):
    """Eq. 2 to 5.

    stat            "mean" | "second_moment" | "std" | "active"
    next_weights    times the L1-norm of the kernels that read the channel
    normalise       per layer: "mean" | "max" | "l2" | "none"
    """

    def __init__(self, stat: str = "mean", next_weights: bool = False, normalise: str = "mean"):
        for name, value, allowed in (("stat", stat, STATS), ("normalise", normalise, NORMALIZERS)):
            if value not in allowed:
                raise UserError(f"bn_tells: unknown {name} {value!r}; choose one of: {', '.join(allowed)}")
        self.stat, self.next_weights, self.normalise = stat, next_weights, normalise

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        for group in groups:
            scaled(group, probe.net)

    def score(self, group: FilterGroup, probe: Probe) -> Tensor:
        stats = [STATS[self.stat](*activity(norm.weight.double(), norm.bias.double()))[index].mean(1)
                 for norm, index in scaled(group, probe.net)]
        score = torch.stack(stats).mean(0)
        if self.next_weights:
            score = score * torch.stack([w.abs().sum(1) for w in group.kernels(probe.net)]).sum(0)
        return NORMALIZERS[self.normalise](score)
