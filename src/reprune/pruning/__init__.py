"""How filters are chosen: the sockets a method fills, what it may look at (probe), allocations and rounds.

Imports structure. Below are the names that configs give as `_target_`, and what training loops of one's own need.
"""

from reprune.pruning.allocation import PerLayer, Uniform
from reprune.pruning.bisection import Bisection
from reprune.pruning.latency import Latency
from reprune.pruning.learned import Learned
from reprune.pruning.ranking import Budget, Global
from reprune.pruning.recalibrate import Recalibrate
from reprune.pruning.rounds import LayerByLayer, OneShot, Steps
from reprune.pruning.sensitivity import Sensitivity
from reprune.pruning.silencing import PruningCallback
from reprune.pruning.sockets import Method, Step

__all__ = ["Bisection", "Budget", "Global", "Latency", "LayerByLayer", "Learned", "Method", "OneShot",
           "PerLayer", "PruningCallback", "Recalibrate", "Sensitivity", "Step", "Steps", "Uniform"]
