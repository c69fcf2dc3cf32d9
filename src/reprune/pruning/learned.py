"""Scores that a method has learned while the net trained sparse."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup
from reprune.structure.notes import notes


class Learned(Criterion):
    """What `method.during` has left for each filter; in later rounds, for those that are still there. Groups it has
    learned nothing of stay whole."""

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        learned = probe.carried.get("learned", {})
        found = {g.name: torch.tensor(learned[g.name]) for g in groups if g.name in learned}
        if not found:
            raise UserError("Learned: sparse training has learned nothing of the filters that may go: it needs "
                            "method.during, and recipe.sparse.epochs of at least 1")
        for plan in notes(probe.net).get("history", []):
            found = {name: scores[plan[name]] if name in plan else scores for name, scores in found.items()}
        return found
