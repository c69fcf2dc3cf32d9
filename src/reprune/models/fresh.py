"""Fresh weights for a net that was pruned: what its widths are worth without the weights that pruning has kept."""

from __future__ import annotations

import torch
from torch import nn

from reprune import models
from reprune.models.common import init_convs
from reprune.structure.groups import trace
from reprune.structure.notes import notes
from reprune.structure.surgery import remove


def reset(net: nn.Module) -> None:
    """In place, as the builder of the net draws them. The nets of this project have one rule, which holds for any
    widths; of torchvision's a whole one is made and loses the same filters."""
    known = notes(net)
    if "model" in known and "init" not in known:
        net.load_state_dict(_another(net).state_dict())
        return
    for module in net.modules():                                  # torch's own rule, but for convs
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    if "init" in known:
        init_convs(net, known["init"])


def _another(net: nn.Module) -> nn.Module:
    """Of the same widths."""
    fresh = models.build({**notes(net)["model"], "weights": None})
    for plan in notes(net).get("history", []):
        trace(fresh, torch.zeros(1, *notes(net)["input_shape"]))
        fresh = remove(fresh, plan, check=False)                  # it was checked when the net itself was cut
    return fresh
