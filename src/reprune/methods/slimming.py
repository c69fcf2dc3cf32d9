r"""Network slimming: L1 on the scale factors of batch normalisation.     Liu et al., ICCV 2017, arXiv:1708.06519

    L = CE + lambda * sum_gamma |gamma|           (eq. 1)   sub-gradient sign(gamma), 0 at gamma = 0
    remove the channels with |gamma| < t,  t = a percentile of all |gamma|              (section 3.3)

    gamma    scale of one channel, the `weight` of its BatchNorm2d     [C] per layer; over all layers of the net
    lambda   1e-4 for VGG, 1e-5 for ResNet and DenseNet

Gamma starts at 0.5, where the penalised training starts from fresh weights; the narrow net is fine-tuned as it was
trained. Weight decay acts on gamma as well.

Needs: training; batch norm.

Deviations: the baseline, which is not penalised, starts with gamma 1. A channel that passes several BN layers (block
outputs; DenseNet) is ranked by their mean |gamma|. In residual nets inner widths only are pruned (`groups: inner`),
where the paper, on pre-activation nets, also selects the inputs of a block; t is then a percentile of what may go. The
paper's multi-pass scheme is not here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.allocation import keep_best
from reprune.pruning.probe import Probe
from reprune.pruning.ranking import NORMALIZERS, Global
from reprune.pruning.sockets import Criterion, Scores, Step
from reprune.structure.groups import FilterGroup, Plan


def scale_factors(net: nn.Module) -> Tensor:
    """Gamma of every BatchNorm2d, in the net's order. -> [sum of C]. UserError: there is none to penalise.

    >>> scale_factors(nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(1))).tolist()
    [1.0, 1.0, 1.0]
    """
    gammas = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    if not gammas:
        raise UserError(f"slimming: {type(net).__name__} has no BatchNorm2d with a scale factor to penalise")
    return torch.cat(gammas)


class GammaL1:
    """The second term of eq. 1, added to the cross-entropy.

    weight    lambda >= 0
    init      every gamma before the first step of a training from fresh weights; None: as the net has it
    """

    def __init__(self, weight: float = 1e-4, init: float | None = 0.5) -> None:
        if not 0 <= weight < float("inf"):
            raise UserError(f"slimming: weight (lambda) must be a number >= 0, got {weight}")
        self.weight, self.init = weight, init

    def start(self, net: nn.Module) -> None:
        for module in net.modules() if self.init is not None else ():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                nn.init.constant_(module.weight, self.init)

    def __call__(self, step: Step) -> Tensor:
        return self.weight * scale_factors(step.net).abs().sum()


def mean_scale(gammas: list[Tensor]) -> Tensor:
    """|gamma| of each channel, averaged over the BN layers it passes through. each [size] -> [size]

    >>> mean_scale([torch.tensor([1., -2.]), torch.tensor([3., 0.])])
    tensor([2., 1.])
    """
    return torch.stack(gammas).abs().mean(0)


class Gamma(Criterion):
    """|gamma| of a filter's BN; channels below one percentile of all |gamma| go (`allocation: percentile`)."""

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        for group in groups:
            scaled(group, probe.net)

    def score(self, group: FilterGroup, probe: Probe) -> Tensor:
        return mean_scale([norm.weight[index[:, 0]] for norm, index in scaled(group, probe.net)])


def scaled(group: FilterGroup, net: nn.Module) -> list[tuple[nn.Module, Tensor]]:
    """The batch norms that scale the channels of a group, with their index [size, k]. UserError: there is none."""
    norms = [(net.get_submodule(s.module), s.index) for s in group.norms(net)]
    if not (found := [(norm, index) for norm, index in norms if getattr(norm, "affine", False)]):
        raise UserError(f"{group.name} has no batch norm behind it to read a scale from: skip it (allocation.skip) or "
                        "choose another criterion")
    return found


@dataclass(kw_only=True)
class Percentile(Global):
    """Section 3.3: what lies below the `rate` percentile of all scores goes. Unlike `global`, no other layer makes up
    for one that has come to its floor."""

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        groups = self.candidates(probe, scores)
        scores = {g.name: NORMALIZERS[self.normalize](scores[g.name]) for g in groups}
        original = sum(probe.original.sizes.get(g.name, g.size) for g in groups)
        gone = original - sum(g.size for g in groups)             # in the rounds before
        limit = threshold(torch.cat(list(scores.values())), int(original * self.rate * probe.share + 1e-9) - gone)
        stay = {g.name: int((scores[g.name] >= limit).sum()) for g in groups}
        return {g.name: keep_best(scores[g.name], self.to_remove(stay[g.name], g, probe)) for g in groups}


def threshold(scores: Tensor, n: int) -> Tensor:
    """What n of the scores lie below. [all] -> []

    >>> threshold(torch.tensor([0.5, 0.1, 0.9, 0.3]), 2)
    tensor(0.5000)
    """
    return scores.sort().values[max(0, n)]
