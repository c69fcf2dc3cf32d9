"""Nets for the surgery tests, plans for them, and the comparison that decides: silence == remove.

All in float64: both sides do the same sums in another order, so the tolerance can be near 1e-16 instead of 1e-4.
"""

import copy
import warnings
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

import reprune
from reprune import models
from reprune.structure.groups import traced

EXACT = 1e-10           # error allowed, as a fraction of the change that a small change of the input makes

OURS = {
    **{f"cifar-resnet{d}": partial(models.resnet, d) for d in (8, 20, 56)},
    "cifar-resnet8b": partial(models.resnet_b, 8), "cifar-preresnet20": partial(models.preresnet, 20),
    "cifar-densenet13": partial(models.densenet, 13), "cifar-googlenet": models.googlenet,
    "cifar-mobilenet_v1": models.mobilenet_v1, "cifar-mobilenet_v2": models.mobilenet_v2,
    "cifar-vgg13": partial(models.vgg, 13, bn_last=True), "lenet5": partial(models.lenet5, in_channels=3),
    "cifar-vgg16": partial(models.vgg, 16),
    "cifar-vgg16-512": partial(models.vgg, 16, hidden=512),
    "cifar-stem-resnet18": partial(models.resnet_cifar_stem, 18),
    "narrow-alexnet": models.narrow_alexnet, "narrow-vgg11": models.narrow_vgg,
    "narrow-vgg11_bn": partial(models.narrow_vgg, batch_norm=True),
    **{f"narrow-resnet{d}": partial(models.narrow_resnet, d) for d in (18, 34, 50)},
    "wide-resnet14": partial(torchvision.models.ResNet, torchvision.models.resnet.Bottleneck, [1, 1, 1, 1],
                             width_per_group=128),
}
TORCHVISION = ("alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "googlenet",
               "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "squeezenet1_1",
               "mnasnet1_0")
NAMES = (*OURS, *TORCHVISION)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The net called `name`, in eval mode, and a batch for it; its outputs depend visibly on the input."""
    where = "cpu" if name.startswith("regnet") else "meta"    # RegNet computes its widths with tensors
    with torch.device(where):                                 # their own initialisation takes seconds and is not used
        options = {"init_weights": False} if name == "googlenet" else {}
        net = OURS[name]() if name in OURS else torchvision.models.get_model(name, num_classes=5, **options)
        if name in ("alexnet", "vgg11_bn"):                   # 4096 hidden units are 1 GB in float64: same wiring, less
            layers = [m for m in net.classifier if isinstance(m, nn.Linear)]
            layers[0].weight, layers[0].bias = _empty(96, layers[0].in_features), _empty(96)
            layers[1].weight, layers[1].bias = _empty(64, 96), _empty(64)
            layers[2].weight = _empty(5, 64)
            layers[0].out_features, layers[1].in_features = 96, 96
            layers[1].out_features, layers[2].in_features = 64, 64
    generator = torch.Generator().manual_seed(0)
    size = 64 if name in TORCHVISION else 32 if any(deep in name for deep in ("vgg", "narrow", "wide", "lenet")) else 16
    x = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64)
    return lively(net.double().to_empty(device="cpu"), x, generator), x


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


@torch.no_grad()
def lively(net: nn.Module, x: Tensor, generator: torch.Generator) -> nn.Module:
    """Random weights, no bias or BN shift zero, BN statistics of the batch x. In eval mode.

    With the default initialisation a test of silence == remove can pass although surgery is wrong: shifts of zero need
    no silencing, and with untouched BN statistics a deep net's outputs do not depend on its input."""
    for module in net.modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None                            # the statistics of all batches seen: here of one
            module.reset_running_stats()
        if isinstance(weight, Tensor):
            if weight.dim() > 1:
                weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=generator)
            else:
                weight.uniform_(0.5, 1.5, generator=generator)
        if isinstance(bias, Tensor):
            bias.normal_(0, 0.3, generator=generator)
    net.train()(x)
    return net.eval()


def random_plan(net: nn.Module, seed: int, rate: float = 0.4) -> reprune.Plan:
    """Keeps each filter with probability 1 - rate, at least one of every group and, of two or more, not all."""
    generator, plan = torch.Generator().manual_seed(seed), {}
    for group in traced(net).groups:
        mask = torch.rand(group.size, generator=generator) >= rate
        lucky, unlucky = torch.randint(group.size, (2,), generator=generator)
        mask[unlucky], mask[lucky] = False, True
        plan[group.name] = mask
    return plan


def quiet_trace(net: nn.Module, x: Tensor) -> list[reprune.FilterGroup]:
    """`trace` that may not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return reprune.trace(net, x)


@torch.no_grad()
def check_removal(net: nn.Module, x: Tensor, plan: reprune.Plan) -> nn.Module:
    """silence(net)(x) == remove(net)(x), compared with what a small change of x does to it. -> the smaller net"""
    silent, smaller = reprune.silence(net, plan), reprune.remove(net, plan)
    expected = silent(x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    signal = (silent(x + 0.1 * noise) - expected).abs().max()
    assert signal > 0, "the silenced net does not look at its input: this comparison would prove nothing"
    assert (smaller(x) - expected).abs().max() <= EXACT * signal
    changed = (net(x) - expected).abs().max()
    assert changed > 1e-6 * signal, "silencing changed nothing: this comparison would prove nothing"
    assert not any(m.training for m in smaller.modules())
    return smaller


def is_rewritten(net: nn.Module) -> bool:
    """Whether forward code of the net was counted again."""
    return any(hasattr(type(module), "rewritten_from") for module in net.modules())


def snapshot(net: nn.Module) -> tuple:
    """What surgery may not change: every tensor and every module's mode."""
    return copy.deepcopy(net.state_dict()), {n: m.training for n, m in net.named_modules()}


def same(a: tuple, b: tuple) -> bool:
    return a[1] == b[1] and list(a[0]) == list(b[0]) and all(torch.equal(a[0][k], b[0][k]) for k in a[0])
