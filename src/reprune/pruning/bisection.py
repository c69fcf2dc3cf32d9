"""Layer by layer the largest rate that held-out accuracy stands: a step constraint (Xie et al. 2021, `cap`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from reprune.errors import UserError
from reprune.pruning.allocation import Rates, keep_best
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Scores, Transform
from reprune.structure.groups import FilterGroup, Plan


@dataclass(kw_only=True)
class Bisection(Rates):
    """Layer by layer, in order of execution: the largest rate whose net, pruned so far and repaired, has at least
    start - l / L drop points of top-1 on held-out images, at layer l of L.

    trials          of the bisection between 0 and max_sparsity
    max_sparsity    of a layer
    drop            points of the net as it is that may be lost; in every round of several
    repair          of the method, for every net that is tried
    """

    trials: int = 6
    max_sparsity: float = 0.9
    drop: float = 1.0
    repair: Mapping[str, Transform] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials < 1 or not 0 < self.max_sparsity < 1 or self.drop < 0:
            raise UserError("allocation: trials must be at least 1, max_sparsity between 0 and 1, drop at least 0, got "
                            f"{self.trials}, {self.max_sparsity}, {self.drop}")

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        probe.check_held_out("allocation")

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        groups, plan, start = self.candidates(probe, scores), {}, probe.accuracy({})
        for number, group in enumerate(groups, 1):
            least, low, high = start - number / len(groups) * self.drop, 0.0, self.max_sparsity
            for _ in range(self.trials):
                middle = (low + high) / 2
                tried = plan | {group.name: self.mask(group, middle, scores, probe)}
                good = probe.accuracy(tried, (self.repair or {}).values()) >= least
                low, high = (middle, high) if good else (low, middle)
            plan[group.name] = self.mask(group, low, scores, probe)
        return plan

    def mask(self, group: FilterGroup, rate: float, scores: Scores, probe: Probe) -> Tensor:
        return keep_best(scores[group.name], self.count(group, rate, probe))
