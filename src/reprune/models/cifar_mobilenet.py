"""MobileNets for 32x32 images.

    V1: Howard et al., 2017, arXiv:1704.04861, table 1, with stride 1 in the stem. Modules are named as in
    github.com/kuangliu/pytorch-cifar and github.com/EkdeepSLubana/OrthoReg (Lubana et al. 2020).
    V2: Sandler et al., CVPR 2018, arXiv:1801.04381, table 2: torchvision's, with stride 1 in the stem and in the
    second stage (24 filters).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reprune.models.common import check_counts, init_convs
from reprune.models.torchvision_zoo import torchvision

# (filters, stride) of each pair of a depthwise and a 1x1 conv
PAIRS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class Separable(nn.Module):
    """A 3x3 conv on each channel by itself, then a 1x1 conv; BN and ReLU after both."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_in, 3, stride, padding=1, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv2, self.bn2 = nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))         # [B, c_in, H / stride, W / stride]
        return F.relu(self.bn2(self.conv2(x)))      # [B, c_out, H / stride, W / stride]


class MobileNet(nn.Module):
    """[B, in_channels, H, W] -> logits [B, classes]."""

    def __init__(self, classes: int, in_channels: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        inputs = (32, *(c for c, _ in PAIRS))
        self.layers = nn.Sequential(*(Separable(c_in, c, stride)
                                      for c_in, (c, stride) in zip(inputs, PAIRS, strict=False)))
        self.linear = nn.Linear(inputs[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))         # [B, 32, H, W]
        x = self.layers(x)                          # [B, 1024, H/16, W/16]
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.linear(x)


def mobilenet_v1(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """CIFAR MobileNet: [B, in_channels, H, W] -> logits [B, classes].

    UserError: `classes` or `in_channels` not a positive whole number.

    >>> sum(p.numel() for p in mobilenet_v1().parameters())
    3217226
    """
    check_counts(classes=classes, in_channels=in_channels)
    net = MobileNet(classes, in_channels)
    init_convs(net)
    return net


def mobilenet_v2(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """CIFAR MobileNetV2: [B, in_channels, H, W] -> logits [B, classes].

    Layers, names and initial weights are torchvision's, with dropout 0.2 before the linear layer.
    UserError: `classes` or `in_channels` not a positive whole number.
    """
    net = torchvision("mobilenet_v2", classes, in_channels)
    net.features[0][0].stride = (1, 1)
    net.features[2].conv[1][0].stride = (1, 1)      # the depthwise conv of the first block of the second stage
    return net
