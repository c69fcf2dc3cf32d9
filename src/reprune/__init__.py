"""reprune: re-runs CNN filter-pruning papers and regenerates their result tables beside the papers' own numbers."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reprune.checkpoint import load, save
    from reprune.cost import Cost, cost
    from reprune.groups import FilterGroup, Plan, trace
    from reprune.surgery import remove, silence

__all__ = ["Cost", "FilterGroup", "Plan", "cost", "load", "remove", "save", "silence", "trace"]
HOME = {"Cost": "cost", "FilterGroup": "groups", "Plan": "groups", "cost": "cost", "load": "checkpoint",
        "remove": "surgery", "save": "checkpoint", "silence": "surgery", "trace": "groups"}


class Package(ModuleType):
    """Imports torch (seconds, half a gigabyte) when a name is asked for: tables of records do without."""

    def __getattr__(self, name: str) -> Any:
        if name not in HOME:
            raise AttributeError(f"module 'reprune' has no attribute {name!r}")
        value = getattr(import_module(f"reprune.{HOME[name]}"), name)
        super().__setattr__(name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """Importing reprune/cost.py would put the module where its function is meant."""
        if isinstance(value, ModuleType) and name in HOME:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *HOME})


sys.modules[__name__].__class__ = Package
