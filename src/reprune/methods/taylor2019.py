r"""First-order Taylor importance of gates.                  Molchanov et al., CVPR 2019, arXiv:1906.10771

    I_c = ( g_c dL/dg_c )^2                         of one mini-batch, then the mean over mini-batches  (1)
    I_c <- I_c / b                                  shared gates of a residual stage                    (2)
    I   <- 0.9 I_old + 0.1 I_new                    from one removal to the next                        (3)

    g_c      gate of value 1 behind the batch norm of channel c                        [C]
    L        mean cross-entropy of a mini-batch
    b        residual blocks whose sums the gate covers

A gate behind a batch norm acts as one behind the ReLU that follows (g y -> g max(y, 0)): gates stand on feature maps;
that of a residual stage stands on the sum of every block. The lowest gates of the whole net go, without normalisation,
some mini-batches of training follow, and so on (`allocation: global`, `rounds: steps`).

Needs: images, labels, gradients.

Deviations: importance is measured on training images after the updates, other ones in every round, in eval mode and
without augmentation, where the authors' code collects it during the updates, which here come on top of the epochs of
the recipe; momentum of the optimiser starts anew in every round, and the penalty `group_wd_coeff` (1e-8) is left out.
The authors' code divides every gate of a ResNet that is not one of a stage by 3 as well: `reproduce_divisor`.
Mini-batches, their size and the share of a round on CIFAR are a reconstruction. Where the stem is added up with the
first stage, its map counts among the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.methods.taylor2016 import round_seed
from reprune.pruning.maps import Gates
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup
from reprune.structure.modes import eval_mode
from reprune.structure.notes import notes


def importance(gradients: Tensor) -> Tensor:
    """Eq. 1 with g = 1. dL/dg of each mini-batch [batches, C] -> [C]

    Squared before the mean: gates whose gradients have opposite signs are not unimportant.

    >>> importance(torch.tensor([[3., 1.], [-3., 2.]]))
    tensor([9.0000, 2.5000])
    """
    return gradients.square().mean(0)


class TaylorFO(Criterion):
    """Eq. 1 to 3.

    batches              mini-batches between two removals
    batch_size           of them: L is their mean, so it matters
    momentum             weight of I_old in eq. 3, 0: none
    reproduce_divisor    the authors' code: gates that no stage shares are divided by 3
    """

    def __init__(self, batches: int = 30, batch_size: int = 128, momentum: float = 0.9,
                 reproduce_divisor: bool = False):
        if batches < 1 or batch_size < 1 or not 0 <= momentum < 1:
            raise UserError("taylor2019: batches and batch_size must be at least 1 and momentum in [0, 1), got "
                            f"{batches}, {batch_size}, {momentum}")
        self.batches, self.batch_size, self.momentum = batches, batch_size, momentum
        self.reproduce_divisor = reproduce_divisor

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        groups = list(groups)
        now = {name: score.float().cpu() for name, score in self.measured(groups, probe).items()}
        before, last = probe.carried.get("taylor2019", {}), (notes(probe.net).get("history") or [{}])[-1]
        for group in groups if self.momentum else ():
            old = torch.tensor(before.get(group.name, ()))
            old = old[last[group.name]] if group.name in last and len(old) == len(last[group.name]) else old
            if len(old) == group.size:
                now[group.name] = self.momentum * old + (1 - self.momentum) * now[group.name]
        probe.carried["taylor2019"] = {**before, **{name: score.tolist() for name, score in now.items()}}
        return now

    def measured(self, groups: list[FilterGroup], probe: Probe) -> Scores:
        """Eq. 1 and 2, all groups in one pass."""
        n, found = min(self.batches * self.batch_size, len(probe.data.parts.train)), []
        with eval_mode(probe.net):
            gates = Gates(probe.net, groups)
            for x, y in probe.data.plain(self.batch_size, round_seed(probe), n, probe.example.device):
                mean = {node: each.mean(0) for node, each in gates.gradients(x, y).items()}        # dL/dg [C]
                found.append({name: torch.stack([place.of(mean[place.node]).sum(1) for place in places]).sum(0)
                              for name, places in gates.maps.places.items()})
        return {g.name: importance(torch.stack([each[g.name] for each in found]))
                / self.divisor(g, len(gates.maps.places[g.name])) for g in groups}

    def divisor(self, group: FilterGroup, places: int) -> int:
        return places if group.coupled else 3 if self.reproduce_divisor else 1
