r"""L1-norm filter pruning.                                  Li et al., ICLR 2017, arXiv:1608.08710

    s_j = sum |F_ij|                (Section 3.1)           remove the filters with the smallest s_j

    F_ij     filter j of layer i, flattened                 [c_in * k * k]
    s_j      one number per filter                          [c_out]

The paper prunes one shot with a rate per stage, leaves sensitive layers out, and in ResNets touches the first conv of
each block only (`allocation.groups: inner`). It reports the best test accuracy while retraining. Across layers:

    independent   kernels on maps that are removed already count                   method/rounds=one_shot
    greedy        they do not: each layer is scored on the net as it is by then    method/rounds=layer_by_layer
                                                                                   method.rounds.epochs=0

Where a residual stage is pruned (ResNet-34-C), the shortcut projection and the second convs go by one set of indices,
ranked by the filters of the projection (`coupled: projection`).

Needs: weights.

Deviations: batch size, momentum and weight decay of retraining are not in the paper (recipe li2017: 128, 0.9, 1e-4);
nor is which of both ways a row of its table went: independent here. Residual stages without a projection, which the
paper leaves alone, are ranked by the sum over their layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion
from reprune.structure.groups import FilterGroup
from reprune.structure.names import conv_numbers


def lp_norm(w: Tensor, p: float = 1) -> Tensor:
    """(sum_d |w_jd|^p)^(1/p). w: [c_out, d] -> [c_out].

    >>> lp_norm(torch.tensor([[1., -2.], [0., 3.]])), lp_norm(torch.tensor([[3., -4.]]), p=2)
    (tensor([3., 3.]), tensor([5.]))
    """
    return torch.linalg.vector_norm(w, p, dim=1)


class FilterNorm(Criterion):
    """The Lp norm of each filter; for filters several layers share, the norms of the layers are combined.

    p         1 (Li et al.) or 2 (He et al. 2018)
    coupled   "sum" | "mean" | "last": how the layers of a residual group make one score; "projection": that of its
              shortcut projection alone (the sum, where it has none)
    """

    COMBINE = {"sum": lambda s: s.sum(0), "mean": lambda s: s.mean(0), "last": lambda s: s[-1],
               "projection": lambda s: s.sum(0)}

    def __init__(self, p: float = 1, coupled: str = "sum"):
        if p <= 0:
            raise UserError(f"criterion.p must be above 0, got {p}")
        if coupled not in self.COMBINE:
            raise UserError(f"criterion.coupled: {coupled!r} is not known, choose one of {', '.join(self.COMBINE)}")
        self.p, self.coupled = p, coupled

    def score(self, group: FilterGroup, probe: Probe) -> Tensor:
        norms = torch.stack([lp_norm(w, self.p) for w in group.filters(probe.net)])           # [layers, size]
        if self.coupled == "projection":
            numbers = conv_numbers(probe.net)
            shortcut = [numbers.get(s.module) == 0 for s in group.producers(probe.net)]
            norms = norms[shortcut] if any(shortcut) else norms
        return self.COMBINE[self.coupled](norms)
