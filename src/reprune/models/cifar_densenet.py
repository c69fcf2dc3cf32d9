"""DenseNet for 32x32 images.               Huang et al., CVPR 2017, arXiv:1608.06993, section 3, without bottlenecks.

    depth = 3 n + 4: a 3x3 stem, three blocks of n layers that each add `growth` feature maps to those before, 1x1 convs
    and 2x2 average pools between the blocks, BN and ReLU, one linear layer. BN and ReLU stand before each conv.

Modules are named as in github.com/Eric-mingjie/network-slimming (Liu et al. 2017), without its channel selection, and
in github.com/lmbxmu/HRank (Lin et al. 2020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.models.common import check_counts, init_convs


class DenseLayer(nn.Module):
    """The maps x and `growth` new ones: a 3x3 conv of relu(BN(x))."""

    def __init__(self, c_in: int, growth: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv1(F.relu(self.bn1(x)))), 1)      # [B, c_in + growth, H, W]


class Transition(nn.Module):
    """A 1x1 conv of relu(BN(x)) with as many filters, then half of the width and height."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """[B, in_channels, H, W] -> logits [B, classes]."""

    def __init__(self, layers: int, growth: int, stem: int, classes: int, in_channels: int):
        super().__init__()
        c = [stem + block * layers * growth for block in range(4)]      # channels before each block and after the last
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.dense1, self.trans1 = self._block(c[0], layers, growth), Transition(c[1])
        self.dense2, self.trans2 = self._block(c[1], layers, growth), Transition(c[2])
        self.dense3 = self._block(c[2], layers, growth)
        self.bn = nn.BatchNorm2d(c[3])
        self.fc = nn.Linear(c[3], classes)

    @staticmethod
    def _block(c_in: int, layers: int, growth: int) -> nn.Sequential:
        return nn.Sequential(*(DenseLayer(c_in + i * growth, growth) for i in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)                           # [B, stem, H, W]
        x = self.trans1(self.dense1(x))             # [B, stem + n growth, H/2, W/2]
        x = self.trans2(self.dense2(x))             # [B, stem + 2 n growth, H/4, W/4]
        x = self.dense3(x)                          # [B, stem + 3 n growth, H/4, W/4]
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1)
        return self.fc(x)


def densenet(depth: int = 40, growth: int = 12, stem: int = 24, classes: int = 10, in_channels: int = 3) -> nn.Module:
    """CIFAR DenseNet of `depth` 3 n + 4: [B, in_channels, H, W] -> logits [B, classes]; H and W at least 4.

    `stem`: filters of the first conv; 24 in the code of Liu et al. 2017, Lin et al. 2020 and Chen et al. 2020, 16 in
    Huang et al.
    UserError: `depth` not 3 n + 4; an argument not a positive whole number.
    """
    check_counts(depth=depth, growth=growth, stem=stem, classes=classes, in_channels=in_channels)
    if depth < 7 or depth % 3 != 1:
        raise UserError(f"model.depth={depth!r} of a CIFAR DenseNet must be 3 n + 4: 7, 10, ... 40, 100")
    net = DenseNet((depth - 4) // 3, growth, stem, classes, in_channels)
    init_convs(net, "fan_out")
    return net
