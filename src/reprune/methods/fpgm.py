r"""FPGM: filters nearest to the geometric median of their layer.          He et al., CVPR 2019, arXiv:1811.00250

    s_j = sum_j' || F_j - F_j' ||_2                          (1)   small: near the geometric median, replaceable
    before training and after every epoch: F_j <- 0 for the int(N P) filters with the smallest s_j
    mixed: the int(N P') smallest || F_j ||_2 first, then (1) among the filters that are left        (2)

    F_j      filter j of a layer, flattened                  [c_in * k * k]
    N, P     filters of the layer; fraction removed          P' of it by norm: 0 distances alone, 1 norms alone

Zeroed filters have no gradient until the next selection (`silence_gradients`), where they compete with the others
again; SFP leaves it to them. Momentum still moves them, as in the authors' code. What is zero after the last epoch is
removed.

Needs: training.

Deviations: the layers of a residual group share one mask, by the sums of their norms and distances, so that the
removal at the end is real (a reconstruction; `silence_layers: true` gives each layer its own until the last time).
Batch norm is removed with its filter (the authors leave its shift behind): rows take new statistics after the removal.
Mixed: int(N P) filters go, the authors' int(N P') + int(N (P - P')) can be one less; 30 % by norm and 10 % by distance
is their code, their text has it the other way round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.allocation import floored
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion
from reprune.structure.groups import FilterGroup


def distances(f: Tensor) -> Tensor:
    """Eq. 1. f: [N, d] -> [N].

    >>> distances(torch.tensor([[0., 0.], [3., 4.], [6., 8.]]))              # 0 + 5 + 10;  5 + 0 + 5;  10 + 5 + 0
    tensor([15., 10., 15.])
    """
    return torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def mixed(filters: list[Tensor], by_norm: int) -> Tensor:
    """Eq. 2: `by_norm` filters score below 0, by their norm; all others by (1) among themselves. [N, d] each -> [N].

    >>> mixed([torch.tensor([[1., 0.], [3., 4.], [6., 8.], [3., 0.]])], 1)   # 1 - (10 + 1); 5 + 4; 5 + 8.54; 4 + 8.54
    tensor([-10.0000,   9.0000,  13.5440,  12.5440])
    """
    norms = torch.stack([f.norm(dim=1) for f in filters]).sum(0)
    order = norms.argsort(stable=True)
    rest = order[by_norm:]
    scores = norms - norms.max() - 1                                          # below 0, in the order of the norms
    scores[rest] = torch.stack([distances(f[rest]) for f in filters]).sum(0)
    return scores


class GeometricMedian(Criterion):
    """Eq. 1 and 2. Where filters go for good, those that are zero go first: the last selection has chosen them.

    norm_rate    P', the fraction of a layer's filters that goes by norm: 0 (distances) | 0.3 (the authors' mix) | 1
    """

    def __init__(self, norm_rate: float = 0.0):
        if not 0 <= norm_rate <= 1:
            raise UserError(f"fpgm: norm_rate must lie in [0, 1], got {norm_rate}")
        self.norm_rate = norm_rate

    def score(self, group: FilterGroup, probe: Probe) -> Tensor:
        filters = group.filters(probe.net)
        silent = 0 if probe.soft else int((torch.stack([f.abs().amax(1) for f in filters]).amax(0) == 0).sum())
        return mixed(filters, max(silent, floored(self.norm_rate * group.size)))
