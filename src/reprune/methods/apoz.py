r"""Network trimming: filters whose activations are mostly zero.                Hu et al. 2016, arXiv:1607.03250

    APoZ_c = sum_k sum_j 1[ O_cj(k) = 0 ] / (N M)                            (1)
    remove the filters of a layer with APoZ_c > mean + k_std * std           (2)   mean, std over the layer

    O_cj(k)  output of channel c after its ReLU, at place j of the map, for example k       [N, C, M]
    N, M     held-out examples; places of a map

Trimming and retraining alternate, each time from the weights that have survived, beginning with the few layers of the
highest mean APoZ, and then the next ones. The criterion is 1 - APoZ (larger = keep); (2) is `MeanStd`, the rounds are
`rounds: steps`.

Needs: images.

Deviations: known are (1), (2) and that trimming and retraining alternate; which layers are next (those of the highest
mean APoZ that have not been trimmed yet; when all have been, all over again), the number of layers at a time, of
rounds and examples (5000, held out of the training set), and all schedules are a reconstruction. Only widths that no
addition couples are pruned (`groups: inner`), as the last conv of a residual block has no ReLU of its own; where
others are asked for, the ReLU behind the addition counts. What several layers read at several places has the mean of
these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.allocation import Limits, keep_best
from reprune.pruning.maps import Maps, channels
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup, Plan
from reprune.structure.modes import eval_mode

ZEROING = {"relu", "relu6", "threshold"}


def zeros(o: Tensor) -> Tensor:
    """Eq. 1 of each example, averaged over places: [N, C, M] -> [N, C]. NaN where an output is.

    >>> zeros(torch.tensor([[[0., 2., 0., 0.], [1., 2., 3., 4.]]]))              # 3 of 4; none
    tensor([[0.7500, 0.0000]])
    """
    return torch.where(o.isnan(), o, (o == 0).to(o)).mean(2)


class APoZ(Criterion):
    """1 - eq. 1.

    n_examples    held-out training images (or all there are)
    """

    def __init__(self, n_examples: int = 5000):
        if n_examples < 1:
            raise UserError(f"criterion.n_examples must be at least 1, got {n_examples}")
        self.n_examples = n_examples

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        probe.check_held_out("apoz")
        with eval_mode(probe.net):
            maps = Maps(probe.net, groups, lambda node, value: None)
        for name, places in maps.places.items():
            if other := [made for place in places for made in maps.made_by(place) if made not in ZEROING]:
                raise UserError(f"apoz: the outputs of {name} are not those of a ReLU ({other[0]}), and so are hardly "
                                "ever zero: skip it (allocation.skip) or choose another criterion")

    @torch.no_grad()
    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        total: dict[str, Tensor] = {}                             # node -> sum over examples [C]

        def see(node: str, value: Tensor) -> None:
            total[node] = total.get(node, 0) + zeros(channels(value)).double().sum(0)

        with eval_mode(probe.net):
            maps, left = Maps(probe.net, groups, see), self.n_examples
            for x, _ in probe.held_out(probe.batch_size):
                maps.run(x[:left])
                left -= len(x[:left])
                if not left:
                    break
        share = {node: zero / (self.n_examples - left) for node, zero in total.items()}
        return {name: 1 - torch.stack([place.of(share[place.node]).mean(1) for place in places]).mean(0).float().cpu()
                for name, places in maps.places.items()}


@dataclass(kw_only=True)
class MeanStd(Limits):
    """Eq. 2: the filters whose score lies below mean - k_std std of their layer.

    layers    so many of the layers with the lowest mean score, of those that have such filters, per round (null: all)
    rate      at most this fraction of a layer goes in a round (null: no limit)
    """

    k_std: float = 1.0
    layers: int | None = 2
    rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and self.layers < 1:
            raise UserError(f"allocation.layers must be at least 1, or null for all layers, got {self.layers}")

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        found = {}
        for group in sorted(self.candidates(probe, scores), key=lambda g: float(scores[g.name].mean())):
            gone = int(outliers(scores[group.name], self.k_std).sum())
            most = group.size if self.rate is None else int(group.size * self.rate)
            if gone := self.to_remove(group.size - min(gone, most), group, probe):
                found[group.name] = keep_best(scores[group.name], gone)
        if self.layers is None:
            return found
        trimmed = probe.carried.get("apoz", [])                   # in rounds before this one
        turn = [name for name in found if name not in trimmed] or [*found]
        chosen = turn[:self.layers]
        probe.carried["apoz"] = [*(trimmed if {*trimmed}.isdisjoint(chosen) else []), *chosen]
        return {name: found[name] for name in chosen}


def outliers(scores: Tensor, k_std: float = 1.0) -> Tensor:
    """Eq. 2 of 1 - APoZ: scores below mean - k_std std. [size] -> bool [size]

    >>> outliers(torch.tensor([0.0, 0.9, 0.9, 1.0]))              # mean 0.7, std 0.41
    tensor([ True, False, False, False])
    """
    return scores < scores.mean() - k_std * scores.std(correction=0)
