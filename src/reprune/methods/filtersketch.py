r"""FilterSketch: narrower weights that keep the covariance of the trained ones.    Lin et al. 2020, arXiv:2001.08514

    A ~ B:   A^T A ~ B^T B,   B of l rows, by Frequent Directions                                   (1)
             rows of A fill B; when it is full: B^T = U S V^T, B <- sqrt(max(S^2 - S_m^2, 0)) U^T, m = int(l / 2),
             and the next row is the m-th; fewer than m rows that are left when B is full are left out
    B <- B / || B ||_F                                                                              (2)

    A    a conv's filters [O, I k k], sketched to l filters; of the conv behind it the inputs [I, O k k], to l inputs
    l    int(rate O), the authors' rate being the fraction kept

No data is needed, and no filter of the old net stays: the sketch is where fine-tuning starts. Batch norm between the
two convs starts anew; all else is copied. The sketch is a repair, after surgery has cut filters (any) to the widths.

Needs: weights.

Deviations: the authors' code reshapes the inputs of the second conv without transposing, so its rows are slices of
memory and no inputs; so does this, and `transpose_fix` does what was meant. Any width between two plain layers can be
sketched, where the authors name those of residual blocks and of the 3x3 and 5x5 branches of GoogLeNet (of these, a
conv between two such widths is sketched twice, filters first, as the printed sizes say). Rows shorter than l, which
the authors leave alone, are sketched as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.structure.groups import FilterGroup, Slice


def sketch(a: Tensor, l: int) -> Tensor:  # noqa: E741
    """Eq. 1. [n, d] -> [l, d], l < n.

    Two rows fill B. They have one direction, of S = 5 and 0: nothing is lost, and the next row is the second.

    >>> b = sketch(torch.tensor([[3., 0., 0.], [4., 0., 0.], [0., 2., 0.]]), 2)
    >>> b.T @ b + 0
    tensor([[25.,  0.,  0.],
            [ 0.,  4.,  0.],
            [ 0.,  0.,  0.]])
    """
    half, b, rest = l // 2, a[:l], a[l:]
    while len(rest) and len(rest) >= half:
        u, s, _ = torch.linalg.svd(b.T, full_matrices=False)      # [d, min(d, l)]; from S_m on all becomes zero
        lost = s[half].square() if half < len(s) else 0
        b = rows(half, (s.square() - lost).clamp_min(0).sqrt()[:half, None] * u.T[:half])
        b, rest = torch.cat([b, rest[:l - half]]), rest[l - half:]
    return rows(l, b)


def rows(n: int, b: Tensor) -> Tensor:
    """With zeros for those that are missing. -> [n, d]"""
    return torch.cat([b, b.new_zeros(n - len(b), b.shape[1])])


def narrow(w: Tensor, axis: int, l: int, normalise: bool = True, transpose: bool = True) -> Tensor:  # noqa: E741
    """Filters (axis 0) or inputs (axis 1) of a weight sketched to l of them. [O, I, ...] -> [l, I, ...] or [O, l, ...]

    >>> w = torch.tensor([[3., 0.], [1., 4.]])                    # l = 1: the last row; the last column; the last row
    >>> narrow(w, 0, 1, False).tolist(), narrow(w, 1, 1, False).tolist(), narrow(w, 1, 1, False, False).tolist()
    ([[1.0, 4.0]], [[0.0], [4.0]], [[1.0], [4.0]])
    >>> narrow(torch.tensor([[3., 0.], [0., 4.]]), 0, 1)
    tensor([[0., 1.]])
    """
    turned = axis == 1 and transpose
    b = sketch((w.transpose(0, 1) if turned else w).reshape(w.shape[axis], -1).double(), l)
    b = b / b.norm().clamp_min(1e-30) if normalise else b
    if turned:
        return b.view(l, w.shape[0], *w.shape[2:]).transpose(0, 1).to(w)
    return b.view(*((w.shape[0], l) if axis else (l, w.shape[1])), *w.shape[2:]).to(w)


class Sketch:
    """A repair: every width that has shrunk is sketched from the net before it, in order of execution.

    normalise        eq. 2 (the authors' weight_norm_method=l2)
    transpose_fix    rows of the second conv are its inputs; false: as in the authors' code
    """

    def __init__(self, normalise: bool = True, transpose_fix: bool = False):
        self.normalise, self.transpose_fix = normalise, transpose_fix

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        for group in groups:
            layers = [(s, probe.net.get_submodule(s.module)) for s in (*group.producers(probe.net), *group.readers())]
            whole = all(s.index.numel() == m.weight.shape[s.axis == "in"] and getattr(m, "groups", 1) == 1
                        for s, m in layers)
            if group.coupled or not whole or len(group.producers(probe.net)) != 1:
                raise UserError(f"filtersketch: {group.name} does not feed its channels, and no others, to the next "
                                "layer: set allocation.groups=inner, or skip it (allocation.skip)")

    @torch.no_grad()
    def __call__(self, net: nn.Module, probe: Probe) -> nn.Module:
        weights: dict[str, Tensor] = {}                           # of the layers on the way from old to new
        for group in reversed(probe.groups):                      # of a conv, filters before inputs
            producers = group.producers(probe.net)
            width = net.get_submodule(producers[0].module).weight.shape[0]
            if width == probe.net.get_submodule(producers[0].module).weight.shape[0]:
                continue
            self.check([group], probe)
            for s in [*producers, *group.readers()]:
                old = weights.get(s.module, probe.net.get_submodule(s.module).weight)
                weights[s.module] = self.sketched(old, s, width)
            for s in group.norms(probe.net):
                net.get_submodule(s.module).reset_parameters()
        for name, weight in weights.items():
            net.get_submodule(name).weight.copy_(weight)
        return net

    def sketched(self, w: Tensor, where: Slice, width: int) -> Tensor:
        if where.axis == "out":
            return narrow(w, 0, width, self.normalise)
        places = where.index.shape[1]                             # inputs of a filter: the places of a flattened map
        w = w.unflatten(1, (-1, places)) if places > 1 else w
        w = narrow(w, 1, width, self.normalise, self.transpose_fix)
        return w.flatten(1, 2) if places > 1 else w
