"""reprune: re-runs CNN filter-pruning papers and regenerates their result tables beside the papers' own numbers.

    pipeline.py     one run, top to bottom: read it first
    smaller.py      one call, from a trained net to a smaller one
    methods/        one paper, one file
    pruning/        how filters are chosen: sockets, allocations, rounds, what a criterion may look at
    structure/      tracing, filter groups, costs; filters are removed in surgery.py
    models/ data/   nets, their checkpoints, exports; datasets
    training/       the LightningModule and its callbacks; a stage goes on where it was cut off: checkpoints.py
    runs/           one run on disk: its key and folder, its stages (found or made), its record and curves
    sweeps/         many runs: cells, workers, status, campaigns
    results/        rows and claims, records, lines; verdict.py; render/, figures/
    schema/ files.py errors.py      the ground: what records and claims are, whole files, errors in one line
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reprune.models.checkpoint import load, save
    from reprune.pruning.allocation import keep_best
    from reprune.smaller import plan, prune
    from reprune.structure.cost import Cost, cost
    from reprune.structure.groups import FilterGroup, Plan, trace
    from reprune.structure.surgery import remove, silence

__all__ = ["Cost", "FilterGroup", "Plan", "cost", "keep_best", "load", "plan", "prune", "remove",
           "save", "silence", "trace"]
HOME = {"Cost": "structure.cost", "FilterGroup": "structure.groups", "Plan": "structure.groups",
        "cost": "structure.cost", "keep_best": "pruning.allocation", "load": "models.checkpoint", "plan": "smaller",
        "prune": "smaller", "remove": "structure.surgery", "save": "models.checkpoint", "silence": "structure.surgery",
        "trace": "structure.groups"}


def __getattr__(name: str) -> Any:
    """Imports torch (seconds, half a gigabyte) when a name is asked for: tables of records do without."""
    if name not in HOME:
        raise AttributeError(f"module 'reprune' has no attribute {name!r}")
    return getattr(import_module(f"reprune.{HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOME})
