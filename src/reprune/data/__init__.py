"""Datasets: `hydra.utils.instantiate(cfg.dataset)` calls one of these functions and gives back a `Data`."""

from reprune.data.base import Data
from reprune.data.folder import imagefolder
from reprune.data.pictures import smallfolder
from reprune.data.rules import monks, xor
from reprune.data.small import cifar10, cifar100, digits, fashion_mnist, mnist, svhn, tinyimagenet

__all__ = ["Data", "cifar10", "cifar100", "digits", "fashion_mnist", "imagefolder", "mnist", "monks", "smallfolder",
           "svhn", "tinyimagenet", "xor"]
