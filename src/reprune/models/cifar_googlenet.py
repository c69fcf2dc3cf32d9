"""GoogLeNet for 32x32 images.             Szegedy et al., CVPR 2015, arXiv:1409.4842, table 1: the nine inceptions.

The variant that papers prune on CIFAR, from github.com/kuangliu/pytorch-cifar: one 3x3 conv with 192 filters for a
stem, two 3x3 convs for each 5x5, BN after each conv (which keeps its bias), no auxiliary heads. Modules are named as in
github.com/lmbxmu/HRank (Lin et al. 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reprune.models.common import check_counts

# Filters of each inception: 1x1; 1x1 and 3x3; 1x1 and (twice) 3x3; 1x1 behind the max-pool.
INCEPTIONS = {
    "a3": (64, 96, 128, 16, 32, 32), "b3": (128, 128, 192, 32, 96, 64),
    "a4": (192, 96, 208, 16, 48, 64), "b4": (160, 112, 224, 24, 64, 64), "c4": (128, 128, 256, 24, 64, 64),
    "d4": (112, 144, 288, 32, 64, 64), "e4": (256, 160, 320, 32, 128, 128),
    "a5": (256, 160, 320, 32, 128, 128), "b5": (384, 192, 384, 48, 128, 128),
}


def conv_bn_relu(c_in: int, c_out: int, side: int) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, side, padding=side // 2), nn.BatchNorm2d(c_out), nn.ReLU()]


class Inception(nn.Module):
    """Four branches side by side: [B, c_in, H, W] -> [B, c1 + c3 + c5 + pool, H, W]."""

    def __init__(self, c_in: int, c1: int, reduce3: int, c3: int, reduce5: int, c5: int, pool: int):
        super().__init__()
        self.branch1x1 = nn.Sequential(*conv_bn_relu(c_in, c1, 1))
        self.branch3x3 = nn.Sequential(*conv_bn_relu(c_in, reduce3, 1), *conv_bn_relu(reduce3, c3, 3))
        self.branch5x5 = nn.Sequential(*conv_bn_relu(c_in, reduce5, 1), *conv_bn_relu(reduce5, c5, 3),
                                       *conv_bn_relu(c5, c5, 3))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *conv_bn_relu(c_in, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch1x1(x), self.branch3x3(x), self.branch5x5(x), self.branch_pool(x)), 1)


class GoogLeNet(nn.Module):
    """[B, in_channels, H, W] -> logits [B, classes]."""

    def __init__(self, classes: int, in_channels: int):
        super().__init__()
        self.pre_layers = nn.Sequential(*conv_bn_relu(in_channels, 192, 3))
        c_in = 192
        for name, widths in INCEPTIONS.items():
            setattr(self, f"inception_{name}", Inception(c_in, *widths))
            c1, _, c3, _, c5, pool = widths
            c_in = c1 + c3 + c5 + pool
        self.maxpool1, self.maxpool2 = (nn.MaxPool2d(3, stride=2, padding=1) for _ in range(2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(c_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_layers(x)                                          # [B, 192, H, W]
        x = self.maxpool1(self.inception_b3(self.inception_a3(x)))      # [B, 480, H/2, W/2]
        x = self.inception_c4(self.inception_b4(self.inception_a4(x)))  # [B, 512, H/2, W/2]
        x = self.maxpool2(self.inception_e4(self.inception_d4(x)))      # [B, 832, H/4, W/4]
        x = self.inception_b5(self.inception_a5(x))                     # [B, 1024, H/4, W/4]
        x = self.avgpool(x).flatten(1)                                  # [B, 1024]
        return self.linear(x)


def googlenet(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """CIFAR GoogLeNet: [B, in_channels, H, W] -> logits [B, classes].

    Initial weights are torch's default, as in the original code.
    UserError: `classes` or `in_channels` not a positive whole number.

    >>> sum(p.numel() for p in googlenet().parameters())
    6166250
    """
    check_counts(classes=classes, in_channels=in_channels)
    return GoogLeNet(classes, in_channels)
