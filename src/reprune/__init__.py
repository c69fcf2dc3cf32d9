"""reprune: re-runs CNN filter-pruning papers and regenerates their result tables beside the papers' own numbers."""

from reprune.checkpoint import load, save
from reprune.cost import Cost, cost
from reprune.groups import FilterGroup, Plan, trace
from reprune.surgery import remove, silence

__all__ = ["Cost", "FilterGroup", "Plan", "cost", "load", "remove", "save", "silence", "trace"]
