"""How a net is trained: one LightningModule for every stage, its callbacks, checkpoints, and what makes steps faster.

Imports methods, pruning, models, structure and data; knows no run, no record and no result. Below are the names that
configs give as `_target_`.
"""

from reprune.training.schedules import Factors, WarmCosine

__all__ = ["Factors", "WarmCosine"]
