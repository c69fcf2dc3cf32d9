"""Nets of timm (pytorch-image-models), where it is installed: `pip install 'reprune[zoo]'`."""

from __future__ import annotations

from types import ModuleType

from torch import nn

from reprune.errors import UserError
from reprune.models.common import check_counts
from reprune.models.torchvision_zoo import check_known


def timm(arch: str, classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """The net that timm calls `arch` (resnet50, or resnet50.a1_in1k: with the tag of its published weights), untrained:
    [B, in_channels, H, W] -> logits [B, classes].

    UserError: timm is not installed; unknown `arch`; counts not positive whole numbers.
    """
    library = installed()
    check_known("timm", str(arch).partition(".")[0], library.list_models())
    check_counts(classes=classes, in_channels=in_channels)
    try:
        return library.create_model(arch, pretrained=False, num_classes=classes, in_chans=in_channels)
    except Exception as error:                                    # an unknown tag; a net of one kind of images alone
        told = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"model.arch={arch}: timm says: {told}") from error


def installed() -> ModuleType:
    try:
        import timm as library  # seconds, and an extra: only where it is used
    except ImportError as error:
        raise UserError("model=timm: timm is not installed; pip install 'reprune[zoo]'") from error
    return library
