r"""Taylor expansion on feature maps.                        Molchanov et al., ICLR 2017, arXiv:1611.06440

    Theta(z_k) = | 1/M sum_m dC/dz_km z_km |        per example, then the mean over examples         (1)
    Theta_k   <- Theta_k / sqrt( sum_j Theta_j^2 )  over the maps j of the layer that are left       (2)
    Theta_k   <- Theta_k - lambda Theta_flops       MFLOPs that go with a map of the layer           (3)

    z_k      feature map k after its ReLU           [N, C, M]
    C        cross-entropy of one example
    dC/dz z, summed over m: the gradient by a gate of value 1 on the map

The map with the lowest score in the whole net goes, some updates follow, and so on (`allocation: global`, `rounds:
steps`); the net is fine-tuned at the end.

Needs: images, labels, gradients.

Deviations: scores are measured on n_samples training images after the updates, other ones in every round, in eval mode
and without augmentation, where the paper adds them up during the updates; a round takes an equal share of the
reduction, and not one map. What lambda multiplies (multiply-adds in millions, of the map's own conv and of its
readers) and inner widths only in residual nets are a reconstruction; maps that several layers read at several places
have the mean of (1).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.maps import Gates
from reprune.pruning.probe import Probe
from reprune.pruning.ranking import NORMALIZERS
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup
from reprune.structure.modes import eval_mode
from reprune.structure.notes import notes


def theta(dz: Tensor, m: int) -> Tensor:
    """Eq. 1, summed over examples. dz: sum_m dC/dz z of each example [N, C] -> [C]

    Two examples whose effects on map 0 would cancel if they were averaged first:

    >>> theta(torch.tensor([[4., 2.], [-4., 2.]]), 2)
    tensor([4., 2.])
    """
    return (dz / m).abs().sum(0)


class Taylor(Criterion):
    """Eq. 1 to 3.

    n_samples       training images
    batch_size      of them at a time: no matter but for memory
    normalise       eq. 2
    flops_lambda    lambda of eq. 3, 0: none
    """

    def __init__(self, n_samples: int = 960, batch_size: int = 128, normalise: bool = True, flops_lambda: float = 1e-3):
        if n_samples < 1 or batch_size < 1 or not 0 <= flops_lambda < float("inf"):
            raise UserError("taylor2016: n_samples and batch_size must be at least 1 and flops_lambda at least 0, got "
                            f"{n_samples}, {batch_size}, {flops_lambda}")
        self.n_samples, self.batch_size = n_samples, batch_size
        self.normalise, self.flops_lambda = normalise, flops_lambda

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        groups = list(groups)
        found = self.thetas(groups, probe)
        if self.normalise:
            found = {name: NORMALIZERS["l2"](score) for name, score in found.items()}
        return {g.name: (found[g.name] - self.flops_lambda * megaflops(g, probe)).float() for g in groups}

    def thetas(self, groups: list[FilterGroup], probe: Probe) -> Scores:
        """Eq. 1, all groups in one pass."""
        n, total = min(self.n_samples, len(probe.data.parts.train)), {}
        with eval_mode(probe.net):
            gates = Gates(probe.net, groups)
            for x, y in probe.data.plain(self.batch_size, round_seed(probe), n, probe.example.device):
                gradients = gates.gradients(x, y)
                for name, places in gates.maps.places.items():
                    each = torch.stack([theta(place.of(gradients[place.node]).mean(2), gates.sizes[place.node])
                                        for place in places]).mean(0)
                    total[name] = total.get(name, 0) + each.double() / n
        return {name: score.cpu() for name, score in total.items()}


def round_seed(probe: Probe) -> int:
    """Of the images of a round: each sees others."""
    return probe.seed + len(notes(probe.net).get("history") or ())


def megaflops(group: FilterGroup, probe: Probe) -> float:
    """Multiply-adds, in millions, that go with one filter of the group."""
    one = torch.tensor([float(g.name == group.name) for g in probe.groups])
    return (probe.cost({}).macs - probe.costs.after(one).macs) / 1e6
