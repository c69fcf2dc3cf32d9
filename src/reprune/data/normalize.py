"""From uint8 pixels to what the net reads: (p / 255 - mean) / std, in one multiplication and one addition."""

import torch
from torch import Tensor

from reprune.errors import UserError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5,), (0.5,)                   # pixels from -1 to 1

# mean and std per channel over all images of the published training set (fashion_mnist, mnist: before padding to 32x32)
OWN = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "mnist": ((0.1307,), (0.3081,)),
}


def moments(pixels: Tensor) -> tuple[tuple, tuple]:
    """pixels: uint8 [N, H, W, C] -> (mean, std) per channel on the 0..1 scale.

    >>> moments(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1))
    ((0.5,), (0.5,))
    """
    levels = torch.arange(256) / 255
    mean, std = [], []
    for channel in pixels.flatten(0, -2).unbind(-1):  # a histogram is exact, and needs no float copy of the images
        weight = channel.flatten().bincount(minlength=256) / channel.numel()
        m = float((weight * levels).sum())
        mean.append(round(m, 4))
        std.append(round(float((weight * (levels - m) ** 2).sum().sqrt()), 4))
    return tuple(mean), tuple(std)


def constants(name: str, normalize: str, channels: int, own) -> tuple[tuple, tuple]:
    """(mean, std) for `dataset.normalize`; own: a function that computes them when OWN does not list the set.

    ImageNet's constants for one grey channel are the means over its three.
    """
    if normalize == "imagenet":
        return IMAGENET if channels == 3 else tuple((round(sum(c) / 3, 4),) * channels for c in IMAGENET)
    if normalize == "half":
        return tuple(c * channels for c in HALF)
    if normalize == "own":
        return OWN.get(name) or own()
    raise UserError(f"dataset {name}: normalize is '{normalize}'; use own, imagenet or half")


class Normalize:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] with channels_last strides."""

    def __init__(self, mean: tuple, std: tuple, size: int, device):
        mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        if (std <= 0).any():
            raise UserError(f"cannot normalise: std is {std.tolist()} (are all images the same?)")
        # tiled over the pixels [H * W * C]: broadcasting over 3 channels would break vectorisation
        self.scale = (1 / (255 * std)).repeat(size * size).float().to(device)
        self.shift = (-mean / std).repeat(size * size).float().to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        x = pixels.flatten(1).float().mul_(self.scale).add_(self.shift)  # [B, H * W * C]
        return x.view(pixels.shape).permute(0, 3, 1, 2)
