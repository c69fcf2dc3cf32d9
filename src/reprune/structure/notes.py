"""What travels with a net, beside its weights: its trace, the config it was built from, the plans applied to it.

A plain attribute would do, if copying a torch.fx GraphModule did not drop all attributes but `meta`.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn


def notes(net: nn.Module) -> dict[str, Any]:
    """The notes on a net: trace, model, input_shape, history; those that are known."""
    return net.meta.get("reprune", {}) if isinstance(net, fx.GraphModule) else net.__dict__.get("_reprune", {})


def note(net: nn.Module, **facts: Any) -> None:
    """Adds facts; a copy of the net does not see what is noted on the original later."""
    facts = {**notes(net), **facts}
    if isinstance(net, fx.GraphModule):
        net.meta["reprune"] = facts
    else:
        net.__dict__["_reprune"] = facts
