"""How filters are chosen: the sockets a method fills, what it may look at (probe), allocations and rounds.

Imports structure. Below are the names that configs give as `_target_`.
"""

from reprune.pruning.allocation import Budget, Global, PerLayer, Uniform
from reprune.pruning.rounds import LayerByLayer, OneShot, Steps
from reprune.pruning.sensitivity import Sensitivity
from reprune.pruning.sockets import Method

__all__ = ["Budget", "Global", "LayerByLayer", "Method", "OneShot", "PerLayer", "Sensitivity", "Steps", "Uniform"]
