"""Pre-activation bottleneck ResNet for 32x32 images.   He et al., Identity Mappings, ECCV 2016, arXiv:1603.05027.

    depth = 9 n + 2: a 3x3 stem with 16 filters, three stages of n bottleneck blocks with 16, 32, 64 inner filters that
    put out four times as many, BN and ReLU, one linear layer. Batch norm and ReLU stand before each conv.

Modules are named as in github.com/Eric-mingjie/network-slimming (Liu et al. 2017), without its channel selection.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reprune.models.common import check_counts, check_depth, init_convs

DEPTHS = (20, 29, 56, 83, 110, 164)
EXPANSION = 4


class PreBottleneck(nn.Module):
    """shortcut(x) + 1x1 conv, 3x3 conv, 1x1 conv of x, each behind BN and ReLU."""

    def __init__(self, c_in: int, width: int, stride: int):
        super().__init__()
        c_out = EXPANSION * width
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, width, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, c_out, 1, bias=False)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))       # [B, width, H, W]
        out = self.conv2(F.relu(self.bn2(out)))     # [B, width, H / stride, W / stride]
        out = self.conv3(F.relu(self.bn3(out)))     # [B, 4 width, H / stride, W / stride]
        return out + (x if self.downsample is None else self.downsample(x))


class PreResNet(nn.Module):
    """[B, in_channels, H, W] -> logits [B, classes]."""

    def __init__(self, blocks: int, classes: int, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(64, 32, blocks, stride=2)
        self.layer3 = self._stage(128, 64, blocks, stride=2)
        self.bn = nn.BatchNorm2d(256)
        self.fc = nn.Linear(256, classes)

    @staticmethod
    def _stage(c_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        rest = (PreBottleneck(EXPANSION * width, width, 1) for _ in range(blocks - 1))
        return nn.Sequential(PreBottleneck(c_in, width, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)                           # [B, 16, H, W]
        x = self.layer1(x)                          # [B, 64, H, W]
        x = self.layer2(x)                          # [B, 128, H/2, W/2]
        x = self.layer3(x)                          # [B, 256, H/4, W/4]
        x = F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1)     # [B, 256]
        return self.fc(x)


def preresnet(depth: int, classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Pre-activation CIFAR ResNet of `depth` 20, 29, 56, 83, 110 or 164: [B, in_channels, H, W] -> logits [B, classes].

    UserError: another depth; `classes` or `in_channels` not a positive whole number.
    """
    depth = check_depth("pre-activation CIFAR ResNet", depth, DEPTHS)
    check_counts(classes=classes, in_channels=in_channels)
    net = PreResNet((depth - 2) // 9, classes, in_channels)
    init_convs(net, "fan_out")         # as in the code of Liu et al. 2017
    return net
