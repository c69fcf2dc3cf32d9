"""ResNet for 32x32 images.            He et al., Deep Residual Learning, CVPR 2016, arXiv:1512.03385, section 4.2.

    depth = 6 n + 2: a 3x3 stem with 16 filters, three stages of n blocks with 16, 32, 64 filters, one linear layer.
    Shortcuts are parameter-free (option A: stride-2 subsampling, zeros for the channels that are new), or 1x1 convs
    where the shape changes (option B).

Modules of `resnet` are named as in github.com/akamaster/pytorch_resnet_cifar10 (`conv1 bn1 layer1.0.conv1 ... linear`),
those of `resnet_b` as in github.com/IntelLabs/distiller (`... layer2.0.downsample.0 ... fc`), so public checkpoints of
both load as they are.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reprune.models.common import check_counts, check_depth, init_convs

DEPTHS = (8, 20, 32, 44, 56, 110)


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)     # the BN that follows has the bias


class BasicBlock(nn.Module):
    """relu(shortcut(x) + BN(conv(relu(BN(conv(x))))))."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(c_in, c_out, stride), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = conv3x3(c_out, c_out), nn.BatchNorm2d(c_out)
        self.stride, self.new_channels = stride, c_out - c_in

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A. [B, c_in, H, W] -> [B, c_out, H / stride, W / stride], half of the zero channels on either side."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        low = self.new_channels // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, low, self.new_channels - low))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))       # [B, c_out, H / stride, W / stride]
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ProjectedBlock(BasicBlock):
    """Option B: a 1x1 conv with BN where the shortcut's shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__(c_in, c_out, stride)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else self.downsample(x)


class ResNet(nn.Module):
    """[B, in_channels, H, W] -> logits [B, classes]."""

    BLOCK, HEAD = BasicBlock, "linear"

    def __init__(self, blocks: int, classes: int, in_channels: int, width: int = 1):
        super().__init__()
        first = 16 * width
        self.conv1, self.bn1 = conv3x3(in_channels, first), nn.BatchNorm2d(first)
        self.layer1 = self._stage(first, first, blocks, stride=1)
        self.layer2 = self._stage(first, 2 * first, blocks, stride=2)
        self.layer3 = self._stage(2 * first, 4 * first, blocks, stride=2)
        setattr(self, self.HEAD, nn.Linear(4 * first, classes))

    def _stage(self, c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
        first = self.BLOCK(c_in, c_out, stride)
        return nn.Sequential(first, *(self.BLOCK(c_out, c_out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))         # [B, 16, H, W]
        x = self.layer1(x)                          # [B, 16, H, W]
        x = self.layer2(x)                          # [B, 32, H/2, W/2]
        x = self.layer3(x)                          # [B, 64, H/4, W/4]
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # [B, 64]
        return getattr(self, self.HEAD)(x)


class ResNetB(ResNet):
    """[B, in_channels, H, W] -> logits [B, classes]."""

    BLOCK, HEAD = ProjectedBlock, "fc"


def resnet(depth: int, classes: int = 10, in_channels: int = 3, width: int = 1) -> nn.Module:
    """CIFAR ResNet of `depth` 8, 20, 32, 44, 56 or 110: [B, in_channels, H, W] -> logits [B, classes].

    `width`: so many times the filters. UserError: another depth; another number that is not positive and whole.

    >>> sum(p.numel() for p in resnet(20).parameters())
    269722
    """
    return _resnet(ResNet, depth, classes, in_channels, width)


def resnet_b(depth: int, classes: int = 10, in_channels: int = 3, width: int = 1) -> nn.Module:
    """`resnet` with option-B shortcuts.

    UserError: another depth; another number that is not positive and whole.

    >>> sum(p.numel() for p in resnet_b(20).parameters())
    272474
    """
    return _resnet(ResNetB, depth, classes, in_channels, width)


def _resnet(kind: type[ResNet], depth: int, classes: int, in_channels: int, width: int) -> nn.Module:
    depth = check_depth("CIFAR ResNet", depth, DEPTHS)
    check_counts(classes=classes, in_channels=in_channels, width=width)
    net = kind((depth - 2) // 6, classes, in_channels, width)
    init_convs(net)
    return net
