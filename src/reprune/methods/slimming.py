r"""Network slimming: L1 on the scale factors of batch normalisation.     Liu et al., ICCV 2017, arXiv:1708.06519

    L = CE + lambda * sum_gamma |gamma|           (eq. 1)   sub-gradient sign(gamma), 0 at gamma = 0

    gamma    scale of one channel, the `weight` of its BatchNorm2d     [C] per layer; over all layers of the net
    lambda   1e-4 for VGG, 1e-5 for ResNet and DenseNet

Channels with the smallest |gamma| in the whole net are removed, and the narrow net is fine-tuned (section 3.3).

Deviations: gamma starts where the net has it (the paper: 0.5); weight decay acts on it as well. A channel that passes
several BN layers (block outputs; DenseNet) is ranked by their mean |gamma|; in residual nets the recipe prunes inner
widths only (`groups: inner`), where the paper, on pre-activation nets, selects the inputs of a block.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion, Step
from reprune.structure.groups import FilterGroup


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
    """

    def __init__(self, weight: float = 1e-4) -> None:
        if not 0 <= weight < float("inf"):
            raise UserError(f"slimming: weight (lambda) must be a number >= 0, got {weight}")
        self.weight = weight

    def __call__(self, step: Step) -> Tensor:
        return self.weight * scale_factors(step.net).abs().sum()


def mean_scale(gammas: list[Tensor]) -> Tensor:
    """|gamma| of each channel, averaged over the BN layers it passes through. each [size] -> [size]

    >>> mean_scale([torch.tensor([1., -2.]), torch.tensor([3., 0.])])
    tensor([2., 1.])
    """
    return torch.stack(gammas).abs().mean(0)


class Gamma(Criterion):
    """|gamma| of a filter's BN; channels below one percentile of ALL |gamma| of the net go (`allocation: global`)."""

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
