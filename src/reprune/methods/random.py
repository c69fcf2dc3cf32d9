r"""Random filters: the control every criterion must beat.

    s_i ~ U(0, 1)                                           s_i of every filter, from the seed of the run alone

Needs: nothing.

Deviations: none; Mittal et al., WACV 2018, arXiv:1801.10447 show how hard this control is to beat.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup


class Random(Criterion):
    """One random number per filter."""

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        generator = probe.generator()
        return {g.name: torch.rand(g.size, generator=generator) for g in groups}
