"""Fresh weights for a pruned net are drawn as the builder of the net draws them."""

import copy
from math import sqrt
from pathlib import Path

import pytest
import torch
from test_models import from_conf
from torch import nn

import reprune
from reprune import models
from reprune.models.fresh import reset

CONF = Path(__file__).parents[1] / "conf" / "model"
OURS = ["resnet20", "vgg16", "narrow_alexnet", "narrow_vgg11", "narrow_resnet18", "resnet18", "resnet164", "densenet40",
        "googlenet", "mobilenet_v2", "lenet5"]
IN_ORDER = OURS[:4]                                         # layers draw in the order they stand in
THEIRS = ["mobilenet_v3_small", "shufflenet_v2_x0_5", "vgg11_bn"]


def built(name, seed=0):
    config = (from_conf(CONF / f"{name}.yaml") if name in OURS else
              {"_target_": "reprune.models.torchvision", "name": name, "arch": name, "classes": 10, "in_channels": 3})
    torch.manual_seed(seed)
    return models.build(config)


def trained(net):
    """Other weights, statistics included."""
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.copy_(torch.full_like(tensor, 3))
    return net


def again(net, seed=0):
    net = trained(copy.deepcopy(net))
    torch.manual_seed(seed)
    reset(net)
    return net.state_dict()


def cut(net, size=32, share=2):
    """Without every second filter of every group."""
    groups = reprune.trace(net, torch.zeros(1, 3, size, size))
    return reprune.remove(net, {g.name: torch.arange(g.size) % share == 0 for g in groups})


@pytest.mark.parametrize("name", [*IN_ORDER, *THEIRS])
def test_of_a_whole_net_they_are_those_it_was_built_with(name):
    net = built(name)
    found = again(net)
    assert all(torch.equal(found[key], tensor) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", OURS)
def test_every_layer_of_a_whole_net_has_the_moments_of_its_builder(name):
    fresh, found = built(name, seed=1).state_dict(), again(built(name))
    for key, tensor in fresh.items():
        if tensor.dim() > 1:
            noise = 6 / sqrt(tensor.numel())
            assert abs(found[key].std() / tensor.std() - 1) < noise and abs(found[key].mean() / tensor.std()) < noise
        elif not tensor.is_floating_point() or len(tensor.unique()) == 1:     # biases of convs, batch norm
            assert torch.equal(found[key], tensor)
        else:                                                                 # of linear layers: uniform
            assert 0 < found[key].abs().max() < 2 * tensor.abs().max()


@pytest.mark.parametrize(("name", "fan"), [("resnet20", "in"), ("vgg16", "in"), ("narrow_alexnet", "out"),
                                           ("narrow_resnet18", "out"), ("resnet18", "out")])
def test_of_a_pruned_net_they_follow_the_widths_that_are_left(name, fan):
    net = cut(built(name))
    found = again(net)
    for key, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = found[f"{key}.weight"]
            wanted = sqrt(2 / (weight[0].numel() if fan == "in" else weight[:, 0].numel()))
            assert weight.shape == module.weight.shape and abs(weight.std() / wanted - 1) < 6 / sqrt(weight.numel())
            assert module.bias is None or not found[f"{key}.bias"].any()


def test_a_pruned_net_of_torchvision_takes_the_filters_of_a_whole_one():
    net, whole = cut(cut(built("mobilenet_v2"))), built("mobilenet_v2", seed=1)
    found = again(net, seed=1)
    assert {key: tensor.shape for key, tensor in found.items()} == {
        key: tensor.shape for key, tensor in net.state_dict().items()}
    stem = found["features.0.0.weight"]
    assert torch.equal(stem, whole.features[0][0].weight[::4])


def test_a_net_of_a_stranger_follows_the_rules_of_torch():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    found = again(net)
    assert all(torch.equal(found[key], tensor) for key, tensor in fresh.items())
