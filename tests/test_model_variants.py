"""Counts that papers print of variants: without batch norm, with another stem, on images of MNIST."""

import pytest
import torch
from test_models import CONF, from_conf, macs, params
from torch import nn

from reprune import models


@pytest.mark.parametrize(("make", "without_norms"), [
    (models.densenet, 1_040_578), (models.googlenet, 6_150_442),       # 1.04 M, 6.15 M
], ids=["densenet40", "googlenet"])
def test_hrank_counts_no_batch_norm(make, without_norms):
    """What Lin et al. 2020 (README of lmbxmu/HRankPlus) print is the parameters of convs and linear layers."""
    net = make()
    norms = sum(params(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert params(net) - norms == without_norms


def test_densenet_with_the_stem_of_huang2017():
    assert params(models.densenet(stem=16)) == 1_019_722               # 1.0 M in their table 2


@pytest.mark.parametrize(("name", "published_params", "published_macs"), [
    ("lenet5", 431_080, 2_293_000),             # Caffe's: 431 K; 1720 KB in Han et al. 2016
    ("lenet300", 266_610, 266_200),             # 267 K; 1070 KB
])
def test_the_lenets_on_mnist_are_the_published_ones(name, published_params, published_macs):
    with torch.device("meta"):
        net = models.build(from_conf(CONF / f"{name}.yaml", channels=1))
    assert params(net) == published_params
    assert macs(net, size=28, channels=1) == published_macs


def test_pooling_changes_no_lenet_on_28x28():
    """There, the pools that fit other sizes are the 2x2 max-pool of LeNet-5 and nothing at all."""
    maps, images = torch.randn(2, 50, 8, 8), torch.randn(2, 1, 28, 28)
    assert torch.equal(models.lenet5().pool2(maps), nn.functional.max_pool2d(maps, 2))
    assert torch.equal(models.lenet300()[0](images), images)
