r"""HGSR: hierarchical group sparse regularisation.       Mitsuno & Kurita, ICPR 2020, arXiv:2011.02389

The ten penalties are those of Mitsuno, Miyao & Kurita, IJCNN 2020, arXiv:2004.04394. Each kernel is a sub-group of its
group, so all ten are one form: a norm per kernel, summed over the kernels of a group, summed over the groups.

    R(W) = sum_i ( sum_o || w_oi ||_r ^ p ) ^ q                      (1)   "feature": a group per input channel i
    R(W) = sum_o ( sum_i || w_oi ||_r ^ p ) ^ q                      (2)   "neuron":  a group per output channel o
    loss = CE + lambda * sum_l [ lambda2 * R(W_l) + (1 - lambda2) * sum |W_l| ]      (3)   over the conv layers l

    W_l      weights of a conv layer               [O, I, kh, kw]
    w_oi     kernel from input i to output o       [kh, kw]
    r, p, q  kernel norm, inner and outer power: the table `KINDS`

With (1) the input slice of channel i empties as a whole: the filter of the layer before that makes i is then free.

Filters are then selected by loss increase (`loss_increase.py`), or by what the penalty has left of them (`GroupNorm`).

R grows faster than the net: with q = 2 the pull on a kernel grows with the n kernels of its group, and lambda does not
carry over between widths. `scale: per_kernel` takes it away; it is no part of the paper:

    R'(W) = R(W) / n ^ (q - 1)                                       (4)   n = O with "feature", I with "neuron"

Needs: training; images and labels where filters are chosen by loss increase.

Deviations: GroupNorm as a selection is ours, the paper selects by the loss increase (loss_increase.py). Where a root
meets an exact zero the sub-gradient 0 is taken; the authors' code gives NaN there. In a grouped conv, "feature" joins
the kernels of equal position in every conv group (a depthwise conv is one group).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion, Step
from reprune.structure.groups import FilterGroup

KINDS = {  # name in the authors' code -> (r, p, q) of eq. 1
    "l1": (1, 1, 1),
    "group_lasso": (2, 2, 0.5),
    "hierarchical_square_rooted_group_lasso": (2, 1, 0.5),
    "hierarchical_squared_group_lasso": (2, 1, 2),
    "exclusive_sparsity": (1, 1, 2),
    "hierarchical_square_rooted_exclusive_sparsity": (1, 2, 0.5),
    "hierarchical_squared_exclusive_sparsity": (1, 2, 2),
    "group_l12": (1, 1, 0.5),
    "hierarchical_square_rooted_group_l12": (1, 0.5, 0.5),
    "hierarchical_squared_group_l12": (1, 0.5, 2),  # the one the released training script uses
}
SCALES = ("sum", "per_kernel")
SUMMED_AXIS = {"feature": 0, "neuron": 1}  # of the kernel norms [O, I]: feature sums over o, neuron over i


def power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent for x >= 0 of any shape; a root has gradient 0, not infinity, where x is exactly 0.

    >>> x = torch.tensor([0., 4.], requires_grad=True)
    >>> power(x, 0.5).sum().backward()
    >>> x.grad                                               # 1 / (2 sqrt 4) = 1/4
    tensor([0.0000, 0.2500])
    """
    if exponent == 1:
        return x
    if exponent == 2:
        return x.square()
    # Masked on both sides: after the root alone, the backward pass would still compute 0 * inf = NaN.
    zero = x == 0
    return x.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def regulariser(w: Tensor, kind: str, grouping: str = "feature", scale: str = "sum") -> Tensor:
    """Eq. 1 and 2, R of one layer, or eq. 4. w: [O, I, kh, kw] -> scalar. UserError: unknown kind, grouping or scale.

    Two outputs, two inputs, kernels 1x2; the L1 norms of the kernels, [O, I], are 4 1 / 0 9:

    >>> w = torch.tensor([[[[2., -2.]], [[1., 0.]]], [[[0., 0.]], [[4., 5.]]]])
    >>> regulariser(w, "l1"), regulariser(w, "exclusive_sparsity")        # 4 + 1 + 9;  (4 + 0)^2 + (1 + 9)^2
    (tensor(14.), tensor(116.))
    >>> regulariser(w, "exclusive_sparsity", "neuron")                     # (4 + 1)^2 + (0 + 9)^2
    tensor(106.)
    >>> regulariser(w, "hierarchical_squared_exclusive_sparsity")          # (16 + 0)^2 + (1 + 81)^2
    tensor(6980.)
    >>> regulariser(w, "hierarchical_square_rooted_exclusive_sparsity")    # sqrt 16 + sqrt 82
    tensor(13.0554)
    >>> regulariser(w, "group_l12")                                        # sqrt 4 + sqrt 10
    tensor(5.1623)
    >>> regulariser(w, "hierarchical_squared_group_l12")                   # (2 + 0)^2 + (1 + 3)^2
    tensor(20.)
    >>> regulariser(w, "hierarchical_square_rooted_group_l12")             # sqrt(2 + 0) + sqrt(1 + 3)
    tensor(3.4142)
    >>> regulariser(w, "hierarchical_squared_group_l12", scale="per_kernel")       # 20 / 2: two kernels in a group
    tensor(10.)

    >>> lasso = torch.tensor([[[[3., 4.]], [[0., 4.]]], [[[0., 0.]], [[3., 0.]]]])    # L2 norms, [O, I]: 5 4 / 0 3
    >>> regulariser(lasso, "group_lasso")                                  # sqrt(25 + 0) + sqrt(16 + 9)
    tensor(10.)
    >>> regulariser(lasso, "hierarchical_squared_group_lasso")             # (5 + 0)^2 + (4 + 3)^2
    tensor(74.)
    >>> regulariser(lasso, "hierarchical_square_rooted_group_lasso")       # sqrt 5 + sqrt 7
    tensor(4.8818)
    """
    check("kind", kind, KINDS)
    check("grouping", grouping, SUMMED_AXIS)
    check("scale", scale, SCALES)
    r, p, q = KINDS[kind]
    kernels = power(torch.linalg.vector_norm(w, r, dim=(2, 3)), p)  # [O, I]
    groups = power(kernels.sum(SUMMED_AXIS[grouping]), q)           # [I] or [O]
    if scale == "sum":
        return groups.sum()
    return groups.sum() / w.shape[SUMMED_AXIS[grouping]] ** (q - 1)         # eq. 4


def check(what: str, name: str, valid: Iterable[str]) -> None:
    """UserError, with the valid names, unless `name` is one of them."""
    if name not in valid:
        raise UserError(f"hgsr: unknown {what} {name!r}; choose one of: {', '.join(valid)}")


class HGSR:
    """Eq. 3 as a penalty: what is added to the cross-entropy. UserError: bad argument, or a net with no conv to act on.

    kind, grouping    a name of KINDS; "feature" (eq. 1) or "neuron" (eq. 2)
    weight            lambda >= 0; choose it on held-out images: `python -m reprune weight`
    scale             "sum": the authors' R | "per_kernel": eq. 4, whose lambda carries over between widths
    mix               lambda2 in [0, 1]: 1 = the regulariser alone, 0 = plain L1
    exclude           convs whose module name contains one of these words are left alone (the authors: 1x1 shortcuts)
    """

    def __init__(self, kind: str = "hierarchical_squared_group_l12", weight: float = 1e-3, mix: float = 0.5,
                 grouping: str = "feature", exclude: Iterable[str] = ("downsample",), scale: str = "sum") -> None:
        check("kind", kind, KINDS)
        check("grouping", grouping, SUMMED_AXIS)
        check("scale", scale, SCALES)
        if not 0 <= weight < float("inf"):
            raise UserError(f"hgsr: weight (lambda) must be a number >= 0, got {weight}")
        if not 0 <= mix <= 1:
            raise UserError(f"hgsr: mix (lambda2) must lie in [0, 1], got {mix}")
        self.kind, self.weight, self.mix, self.grouping, self.scale = kind, weight, mix, grouping, scale
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def weights(self, net: nn.Module) -> list[Tensor]:
        """The conv weights the penalty acts on, each [O, I, kh, kw]."""
        found = [module.weight for name, module in net.named_modules()
                 if isinstance(module, nn.Conv2d) and not any(word in name for word in self.exclude)]
        if not found:
            raise UserError(f"hgsr: {type(net).__name__} has no nn.Conv2d whose name avoids {list(self.exclude)}")
        return found

    def __call__(self, step: Step) -> Tensor:
        layers = [self.mix * regulariser(w, self.kind, self.grouping, self.scale)
                  + (1 - self.mix) * torch.linalg.vector_norm(w, 1) for w in self.weights(step.net)]
        return self.weight * torch.stack(layers).sum()


class GroupNorm(Criterion):
    """How much the penalty has left of a channel: the L2 norm of the weights in its groups.

    grouping    "feature": the kernels that read the channel (eq. 1) | "neuron": the filters that make it (eq. 2)
                | "both". A channel with no such weights (nothing reads it) scores 0.
    """

    GROUPINGS = ("feature", "neuron", "both")

    def __init__(self, grouping: str = "feature"):
        check("grouping", grouping, self.GROUPINGS)
        self.grouping = grouping

    def score(self, group: FilterGroup, probe: Probe) -> Tensor:
        weights = (group.kernels(probe.net) if self.grouping != "neuron" else []) + \
                  (group.filters(probe.net) if self.grouping != "feature" else [])
        squares = [w.square().sum(1) for w in weights] or [torch.zeros(group.size)]
        return torch.stack(squares).sum(0).sqrt()
