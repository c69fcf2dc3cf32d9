"""Nets that torchvision defines: any of its classification models, and its ResNet-18/34 refitted for small images."""

from __future__ import annotations

import difflib

from torch import nn

from reprune.errors import UserError
from reprune.models.common import check_counts, check_depth
from reprune.structure.notes import note

# Auxiliary classifiers exist during training only and read feature maps that pruning changes: they are left out.
# Their nets' own truncated-normal initialisation takes seconds (and warns), so torch's default initialisation is used.
OPTIONS = {name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")}


def resnet_cifar_stem(depth: int, classes: int = 10, in_channels: int = 3) -> nn.Module:
    """torchvision's ResNet-18 or -34 (He et al. 2016, arXiv:1512.03385, table 1) with a stem for small images.

    The stem is a 3x3 conv with stride 1 and no max-pool, where ImageNet's shrinks the image fourfold. Shortcuts are
    projections (option B) and widths 64 to 512: not the nets of `resnet`.
    [B, in_channels, H, W] -> logits [B, classes]. UserError: another depth; counts not positive whole numbers.
    """
    depth = check_depth("ResNet with a CIFAR stem", depth, (18, 34))
    net = torchvision(f"resnet{depth}", classes, in_channels)
    net.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")      # as torchvision's other convs
    net.maxpool = nn.Identity()
    note(net, init="fan_out")
    return net


def torchvision(arch: str, classes: int = 1000, in_channels: int = 3, width_mult: float = 1.0) -> nn.Module:
    """The torchvision classification model named `arch`, untrained: [B, in_channels, H, W] -> logits [B, classes].

    GoogLeNet and Inception v3 come without their auxiliary heads, so they return plain logits while training too.
    `in_channels` other than 3 replaces the stem conv; width_mult: of MobileNetV2, whose channels it multiplies.
    UserError: unknown `arch`; counts not positive whole numbers; a width of another net, or not above zero.
    """
    from torchvision import models  # 2 s to import: only where it is used

    names = models.list_models(module=models)       # this module holds the classification models only
    check_known("torchvision", arch, names)
    check_counts(classes=classes, in_channels=in_channels)
    options = {} if width_mult == 1 else {"width_mult": width_mult}
    if options and (arch != "mobilenet_v2" or isinstance(width_mult, str) or width_mult <= 0):
        raise UserError(f"model.width_mult={width_mult} of {arch}: MobileNetV2 (mobilenet_v2) has widths, above zero")
    net = models.get_model(arch, weights=None, num_classes=classes, **OPTIONS.get(arch, {}), **options)
    if in_channels != 3:
        _replace_stem(net, in_channels)
    return net


def check_known(library: str, arch: str, names: list[str]) -> None:
    """UserError, with what it may be called, unless `arch` is among these names."""
    if arch not in names:
        near = difflib.get_close_matches(str(arch), names, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(names)}"
        raise UserError(f"{library} has no classification model {arch!r}; {hint}")


def _replace_stem(net: nn.Module, in_channels: int) -> None:
    """Make the first conv read `in_channels` channels, in place."""
    name, old = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, new)
