"""The small datasets. Each function reads one set as uint8 arrays; `_data` checks, splits and pads them.

All take the knobs of conf/dataset/*.yaml: name, channels, classes, size, data_dir, normalize, val_size, split_seed,
augment {pad, flip}, limit.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reprune.data import tiny
from reprune.data.download import fetch
from reprune.data.normalize import constants, moments
from reprune.data.split import split, stratified
from reprune.data.tensor import Images, TensorData
from reprune.errors import UserError


def digits(size: int, **knobs) -> TensorData:
    """scikit-learn's 1797 handwritten digits, 8x8 with 16 grey levels, scaled up bilinearly; needs no download.

    The set has no published split: a stratified fifth of it (359 images) is the test set, the same one always.
    """
    from sklearn.datasets import load_digits

    if size < 8 or size % 8:
        raise UserError(f"dataset digits: size is {size}; its 8x8 images can be scaled to a multiple of 8")
    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)  # [N, 1, 8, 8], 0 .. 255
    grey = F.interpolate(grey, size=(size, size), mode="bilinear").round().to(torch.uint8)
    pixels, labels = grey.permute(0, 2, 3, 1).contiguous(), torch.from_numpy(bunch.target).long()
    train, test = stratified(labels, n=len(labels) // 5, seed=0)
    return _data((pixels[train], labels[train]), (pixels[test], labels[test]), size=size, **knobs)


def cifar10(data_dir: str, **knobs) -> TensorData:
    """CIFAR-10, in data_dir/cifar-10-batches-py."""
    from torchvision.datasets import CIFAR10

    return _data(*(_arrays(s.data, s.targets) for s in fetch(CIFAR10, data_dir, "cifar-10-batches-py")), **knobs)


def cifar100(data_dir: str, **knobs) -> TensorData:
    """CIFAR-100 (fine labels), in data_dir/cifar-100-python."""
    from torchvision.datasets import CIFAR100

    return _data(*(_arrays(s.data, s.targets) for s in fetch(CIFAR100, data_dir, "cifar-100-python")), **knobs)


def svhn(data_dir: str, **knobs) -> TensorData:
    """SVHN, cropped digits without the `extra` part, in data_dir/{train,test}_32x32.mat."""
    from torchvision.datasets import SVHN

    sets = fetch(SVHN, data_dir, "train_32x32.mat", train={"split": "train"}, test={"split": "test"})
    return _data(*(_arrays(s.data.transpose(0, 2, 3, 1), s.labels) for s in sets), **knobs)


def fashion_mnist(**knobs) -> TensorData:
    """Fashion-MNIST, in data_dir/FashionMNIST/raw; 28x28 images get a border of zeros up to `size`."""
    from torchvision.datasets import FashionMNIST

    return _mnist(FashionMNIST, **knobs)


def mnist(**knobs) -> TensorData:
    """MNIST, in data_dir/MNIST/raw; likewise."""
    from torchvision.datasets import MNIST

    return _mnist(MNIST, **knobs)


def _mnist(dataset, data_dir: str, size: int, name: str, **knobs) -> TensorData:
    border = (size - 28) // 2
    if border < 0 or size % 2:
        raise UserError(f"dataset {name}: size is {size}; its 28x28 images fit an even size from 28 up")
    sets = fetch(dataset, data_dir, f"{dataset.__name__}/raw")
    parts = ((F.pad(s.data, (border,) * 4)[..., None], s.targets.long()) for s in sets)
    return _data(*parts, size=size, name=name, **knobs)


def tinyimagenet(data_dir: str, **knobs) -> TensorData:
    """TinyImageNet-200, 64x64 pixels, in data_dir/tiny-imagenet-200; val/ is the test set. Not downloaded."""
    return _data(*tiny.read(data_dir), **knobs)


def _arrays(pixels: np.ndarray, labels) -> tuple[Tensor, Tensor]:
    """numpy [N, H, W, C] and N labels -> uint8 and int64 tensors."""
    return torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(np.asarray(labels, dtype=np.int64))


def _data(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, name: str, channels: int, classes: int,
          size: int, normalize: str, val_size: int, split_seed: int, augment: dict | None, limit: int | None,
          data_dir: str | None = None) -> TensorData:
    """train, test: (pixels uint8 [N, S, S, C], labels int64 [N]) -> TensorData."""
    have = {"size": train[0].shape[1], "channels": train[0].shape[3], "classes": int(train[1].max()) + 1}
    for knob, asked in {"size": size, "channels": channels, "classes": classes}.items():
        if asked != have[knob]:
            raise UserError(f"dataset {name}: {knob} is {asked}, but the images have {knob} {have[knob]}")
    pad, flip = _augment(name, size, **(augment or {}))
    mean, std = constants(name, normalize, channels, own=lambda: moments(train[0]))
    parts = split(name, train[1], len(test[1]), val_size, split_seed, limit)
    return TensorData(Images(*train, pad=pad), Images(*test), flip, name=name, channels=channels, classes=classes,
                      size=size, mean=mean, std=std, parts=parts)


def _augment(name: str, size: int, pad: int = 0, flip: bool = False, **unknown) -> tuple[int, bool]:
    if unknown:
        raise UserError(f"dataset {name}: unknown augment {sorted(unknown)}; use pad and flip")
    if not isinstance(pad, int) or not 0 <= pad <= size:
        raise UserError(f"dataset {name}: augment.pad is {pad}; use 0 (no random crop) to {size} pixels")
    return pad, bool(flip)
