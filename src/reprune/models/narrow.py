"""Narrow nets for small images.            Mitsuno, Miyao and Kurita, IJCNN 2020, arXiv:2004.04394: the authors' code.

AlexNet, VGG-11 and ResNets with a sixteenth to a quarter of torchvision's filters. Layers stand in torchvision's order
under torchvision's names, as in github.com/K-Mitsuno/hierarchical-group-sparse-regularization.

Deviations: initial weights follow one rule in all of them, that of training from scratch: convs Kaiming normal, linear
layers torch's default. The authors' AlexNet leaves its convs to torch, too. The linear layers of their VGG start at a
standard deviation of 0.01, which suits 4096 units: with 128 and no batch norm the net stays at chance (40 epochs of the
digits at the authors' learning rate).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.models.common import check_counts, check_depth, init_convs
from reprune.models.torchvision_zoo import torchvision

ALEXNET = (8, "M", 16, "M", 32, 16, 16, "M")                                    # filters of 3x3 convs; M: max-pool 2x2
VGG11 = (16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128, "M")
RESNET = (8, 16, 32, 64)                                                        # filters per stage
HIDDEN = 128                                                                    # units of each hidden linear layer


class ConvNet(nn.Module):
    """Convs, average pool to side x side, linear layers: [B, in_channels, H, W] -> logits [B, classes]."""

    def __init__(self, features: list[nn.Module], side: int, classifier: list[nn.Module]):
        super().__init__()
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)                        # AlexNet: [B, 16, H/8, W/8], VGG-11: [B, 128, H/32, W/32]
        x = self.avgpool(x).flatten(1)              # AlexNet: [B, 256], VGG-11: [B, 128]
        return self.classifier(x)


def narrow_alexnet(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """AlexNet of five 3x3 convs with 8 to 32 filters: [B, in_channels, H, W] -> logits [B, classes]; H, W at least 8.

    Average pool to 4x4, linear layers 256-128-128-classes, dropout 0.5 before the first two, no batch norm.
    UserError: `classes` or `in_channels` not a positive whole number.

    >>> sum(p.numel() for p in narrow_alexnet().parameters())
    63674
    """
    check_counts(classes=classes, in_channels=in_channels)
    net = ConvNet(_convs(ALEXNET, in_channels), 4, [
        nn.Dropout(), nn.Linear(16 * 4 * 4, HIDDEN), nn.ReLU(),
        nn.Dropout(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)])
    init_convs(net, "fan_out")                      # as torchvision draws them for its ResNet and VGG
    return net


def narrow_vgg(batch_norm: bool = False, classes: int = 10, in_channels: int = 3) -> nn.Module:
    """VGG-11 with 16 to 128 filters: [B, in_channels, H, W] -> logits [B, classes]; H, W at least 32.

    Global average pool, linear layers 128-128-128-classes, dropout 0.5 after the first two; with `batch_norm` a BN
    after each conv, which keeps its bias.
    UserError: `batch_norm` not true or false; `classes` or `in_channels` not a positive whole number.

    >>> sum(p.numel() for p in narrow_vgg().parameters())
    611434
    """
    if not isinstance(batch_norm, bool):
        raise UserError(f"model.batch_norm={batch_norm!r} must be true or false")
    check_counts(classes=classes, in_channels=in_channels)
    net = ConvNet(_convs(VGG11, in_channels, batch_norm), 1, [
        nn.Linear(128, HIDDEN), nn.ReLU(), nn.Dropout(),
        nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(), nn.Linear(HIDDEN, classes)])
    init_convs(net, "fan_out")                      # as torchvision draws them for its ResNet and VGG
    return net


def narrow_resnet(depth: int, classes: int = 10, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet-18, -34 or -50 with 8, 16, 32, 64 filters: [B, in_channels, H, W] -> logits [B, classes].

    The stem is ImageNet's: a 7x7 conv with stride 2 and a max-pool. Bottleneck blocks (depth 50) put out four times
    their width. UserError: another depth; `classes` or `in_channels` not a positive whole number.

    >>> sum(p.numel() for p in narrow_resnet(18).parameters())
    177362
    """
    depth = check_depth("narrow ResNet", depth, (18, 34, 50))
    check_counts(classes=classes, in_channels=in_channels)
    with torch.device("meta"):                      # takes no memory: every layer with weights is replaced below
        net = torchvision(f"resnet{depth}")
    net.inplanes = RESNET[0]                        # what the next block reads; _make_layer keeps it up to date
    net.conv1 = nn.Conv2d(in_channels, RESNET[0], 7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(RESNET[0])
    for name, width in zip(("layer1", "layer2", "layer3", "layer4"), RESNET, strict=True):
        wide = net.get_submodule(name)
        setattr(net, name, net._make_layer(type(wide[0]), width, len(wide), wide[0].stride))
    net.fc = nn.Linear(net.inplanes, classes)
    init_convs(net, "fan_out")                      # as torchvision draws them for its ResNet and VGG
    return net


def _convs(widths: tuple, in_channels: int, batch_norm: bool = False) -> list[nn.Module]:
    """3x3 convs with bias, each with ReLU (and BN before it), and the max-pools between them."""
    layers: list[nn.Module] = []
    for width in widths:
        if width == "M":
            layers += [nn.MaxPool2d(2)]
            continue
        layers += [nn.Conv2d(in_channels, width, 3, padding=1), *[nn.BatchNorm2d(width)] * batch_norm, nn.ReLU()]
        in_channels = width
    return layers
