"""VGG with batch norm for 32x32 images.

    Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556, table 1 (columns B, D and E): the convs.
    Liu et al., Network Slimming, ICCV 2017, arXiv:1708.06519: BN after each bias-free conv, one linear layer.
    Li et al., Pruning Filters, ICLR 2017, arXiv:1608.08710: one hidden linear layer of 512 with BN (`hidden=512`).
    Lubana et al., OrthoReg, 2020, arXiv:2009.05014: BN after the ReLU of convs with bias (`bn_last=true`); VGG-13.

The last of the five poolings is a global average, as in the authors' PyTorch code of Network Slimming: on 32x32 inputs
it acts on 2x2 maps, and 28x28 or 64x64 inputs work too. In OrthoReg it is a maximum like the others.
"""

from __future__ import annotations

from torch import Tensor, nn

from reprune.errors import UserError
from reprune.models.common import check_counts, check_depth, init_convs

WIDTHS = (64, 128, 256, 512, 512)                           # filters of each conv, per stage
CONVS = {13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}          # convs per stage


class VGG(nn.Module):
    """[B, in_channels, H, W] -> logits [B, classes]; H and W at least 16."""

    def __init__(self, convs: tuple[int, ...], classes: int, in_channels: int, hidden: int | None, bn_last: bool,
                 width: int = 1):
        super().__init__()
        layers, c_in = [], in_channels
        for stage, (count, filters) in enumerate(zip(convs, WIDTHS, strict=True)):
            c_out = filters * width
            if stage:
                layers += [nn.MaxPool2d(2)]
            for _ in range(count):
                conv, bn = nn.Conv2d(c_in, c_out, 3, padding=1, bias=bn_last), nn.BatchNorm2d(c_out)
                layers += [conv, nn.ReLU(), bn] if bn_last else [conv, bn, nn.ReLU()]
                c_in = c_out
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveMaxPool2d(1) if bn_last else nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(c_in, classes) if hidden is None else nn.Sequential(
            nn.Linear(c_in, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)                # [B, 512, H/16, W/16]
        x = self.pool(x).flatten(1)         # [B, 512]
        return self.classifier(x)


def vgg(depth: int, classes: int = 10, in_channels: int = 3, hidden: int | None = None,
        bn_last: bool = False, width: int = 1) -> nn.Module:
    """CIFAR VGG-13, VGG-16 or VGG-19 with BN: [B, in_channels, H, W] -> logits [B, classes].

    `hidden` None: one linear layer; an int: that many units with BN and ReLU before it (512 in Li et al. 2017).
    `bn_last`: convs with bias, ReLU, then BN, and the last pool is a maximum (Lubana et al. 2020).
    `width`: so many times the filters.
    UserError: another depth; `bn_last` not true or false; another number that is not positive and whole.
    """
    if not isinstance(bn_last, bool):
        raise UserError(f"model.bn_last={bn_last!r} must be true or false")
    depth = check_depth("CIFAR VGG", depth, tuple(CONVS))
    check_counts(classes=classes, in_channels=in_channels, width=width,
                 **({} if hidden is None else {"hidden": hidden}))
    net = VGG(CONVS[depth], classes, in_channels, hidden, bn_last, width)
    init_convs(net)
    return net
