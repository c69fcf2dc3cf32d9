"""reprune: re-runs CNN filter-pruning papers and regenerates their result tables beside the papers' own numbers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reprune.models.checkpoint import load, save
    from reprune.structure.cost import Cost, cost
    from reprune.structure.groups import FilterGroup, Plan, trace
    from reprune.structure.surgery import remove, silence

__all__ = ["Cost", "FilterGroup", "Plan", "cost", "load", "remove", "save", "silence", "trace"]
HOME = {"Cost": "structure.cost", "FilterGroup": "structure.groups", "Plan": "structure.groups",
        "cost": "structure.cost", "load": "models.checkpoint", "remove": "structure.surgery",
        "save": "models.checkpoint", "silence": "structure.surgery", "trace": "structure.groups"}


def __getattr__(name: str) -> Any:
    """Imports torch (seconds, half a gigabyte) when a name is asked for: tables of records do without."""
    if name not in HOME:
        raise AttributeError(f"module 'reprune' has no attribute {name!r}")
    return getattr(import_module(f"reprune.{HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOME})
