r"""L1-norm plus standard deviation.       Sun, Zhou, Pan, Zhong & Wang, ICMV 2018, Proc. SPIE 11041, 10.1117/12.2523246

    n_j = sum_d |F_jd|                                                          (1)
    s_j = sqrt( (1/D) sum_d (F_jd - mean_d F_jd)^2 )                            (2)   the information a filter extracts
    score_j = n_j / max_i n_i  +  alpha * s_j / max_i s_i                       (3)   i over the group

    F_j      filter j of a layer, flattened, D = c_in * k * k entries           [c_out, D]
    alpha    weight of the standard deviation

Filters of all layers are ranked together and the lowest go at once ("multilayer": no rate per layer is set by hand), at
least a tenth of each layer stays; then the net is retrained.

Needs: weights.

Deviations: a reconstruction. Known from the abstract are the two ingredients, removal in all layers at once and
retraining; formula (3), its normalisation, the global threshold and the floor are ours, each a knob. The filters of a
residual group get the mean of their layers' scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.pruning.ranking import NORMALIZERS
from reprune.pruning.sockets import Criterion
from reprune.structure.groups import FilterGroup

COMBINE = {
    "sum": lambda n, s, alpha: n + alpha * s,
    "product": lambda n, s, alpha: n * s,
    "l1": lambda n, s, alpha: n,
    "std": lambda n, s, alpha: s,
}


def std(f: Tensor, unbiased: bool = False) -> Tensor:
    """Eq. 2, mean over kernels if there are several. f: [c_out, kernels, D] -> [c_out].

    >>> std(torch.tensor([[[1., 3.]], [[2., 2.]]]))
    tensor([1., 0.])
    """
    return f.std(2, correction=int(unbiased)).mean(1)


def score(n: Tensor, s: Tensor, combine: str = "sum", alpha: float = 1.0, normalize: str = "max") -> Tensor:
    """Eq. 3. n, s: [c_out] -> [c_out].

    >>> score(torch.tensor([1., 4.]), torch.tensor([2., 1.]))         # 1/4 + 2/2;  4/4 + 1/2
    tensor([1.2500, 1.5000])
    >>> score(torch.tensor([1., 4.]), torch.tensor([2., 1.]), "product", normalize="none")
    tensor([2., 4.])
    """
    scale = NORMALIZERS[normalize]
    return COMBINE[combine](scale(n), scale(s), alpha)


class L1Std(Criterion):
    """Eq. 1 to 3.

    combine      "sum" (eq. 3) | "product" n' s' | "l1" | "std"
    alpha        weight of s' in the sum, >= 0
    normalize    "max" (eq. 3) | "mean" | "l2" | "none": what each ingredient is divided by, per layer
    std_over     "filter" (eq. 2) | "kernel": of each k x k kernel, averaged over the filter
    unbiased     divide by D - 1 instead of D
    """

    def __init__(self, combine: str = "sum", alpha: float = 1.0, normalize: str = "max", std_over: str = "filter",
                 unbiased: bool = False):
        for name, value, allowed in (("combine", combine, COMBINE), ("normalize", normalize, NORMALIZERS),
                                     ("std_over", std_over, ("filter", "kernel"))):
            if value not in allowed:
                raise UserError(f"l1std: unknown {name} {value!r}; choose one of: {', '.join(allowed)}")
        if not 0 <= alpha < float("inf"):
            raise UserError(f"l1std: alpha must be a number >= 0, got {alpha}")
        self.combine, self.alpha, self.normalize = combine, alpha, normalize
        self.std_over, self.unbiased = std_over, unbiased

    def score(self, group: FilterGroup, probe: Probe) -> Tensor:
        scores = []
        for layer, f in zip(group.producers(probe.net), group.filters(probe.net), strict=True):      # f [size, D]
            weight = probe.net.get_submodule(layer.module).weight
            size = weight[0, 0].numel() if self.std_over == "kernel" and weight.dim() > 2 else f.shape[1]
            s = std(f.reshape(len(f), -1, size), self.unbiased)
            scores.append(score(f.abs().sum(1), s, self.combine, self.alpha, self.normalize))
        return torch.stack(scores).mean(0)
