"""New BN statistics for a net that has lost filters: its layers see other means and variances than it was trained with.

Weights stay. Where a net has no batch norm, or only such that keeps no statistics, nothing changes.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reprune.errors import UserError
from reprune.pruning.probe import Probe, eval_mode


class Recalibrate:
    """A repair: in every BN layer, the means of the batch statistics over `images` training images (or all), drawn with
    the probe's seed and not augmented. Dropout stays off; momentum, counters and modes come back."""

    def __init__(self, images: int = 1000):           # no dataclass: omegaconf would make a config of it, in a mapping
        if images < 2:
            raise UserError(f"recalibrate: at least 2 images, got {images}")
        self.images = images

    @torch.no_grad()
    def __call__(self, net: nn.Module, probe: Probe) -> nn.Module:
        norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        if not norms:
            return net
        n = min(self.images, len(probe.data.parts.train))
        equal = math.ceil(n / math.ceil(n / probe.batch_size))    # a small last batch would count as much as the others
        before = [(m, m.momentum, m.num_batches_tracked.clone()) for m in norms]
        with eval_mode(net):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None                              # a mean over all batches
                norm.train()
            try:
                for x, _ in probe.data.plain(equal, probe.seed, n, str(probe.example.device.type)):
                    net(x)
            finally:
                for norm, momentum, counted in before:
                    norm.momentum = momentum
                    norm.num_batches_tracked.copy_(counted)
        return net
