"""The nets, and `build`, which makes one from a `conf/model` node.

| function            | net                                                          | conf/model                     |
|---------------------|--------------------------------------------------------------|--------------------------------|
| `resnet`            | CIFAR ResNet-8/20/32/44/56/110, option-A shortcuts           | resnet8 ... resnet110          |
| `resnet_b`          | the same with option-B shortcuts                             | resnet20b                      |
| `preresnet`         | CIFAR pre-activation ResNet-164 with bottlenecks             | resnet164                      |
| `densenet`          | CIFAR DenseNet-40, growth 12                                 | densenet40                     |
| `googlenet`         | CIFAR GoogLeNet                                              | googlenet                      |
| `mobilenet_v1`      | CIFAR MobileNet                                              | mobilenet_v1                   |
| `mobilenet_v2`      | CIFAR MobileNetV2                                            | mobilenet_v2                   |
| `vgg`               | CIFAR VGG-13/16/19 with batch norm                           | vgg13, vgg16, vgg19            |
| `lenet5`            | LeNet-5 of Caffe                                             | lenet5                         |
| `lenet300`          | LeNet-300-100                                                | lenet300                       |
| `mlp`               | a perceptron with one hidden layer, for inputs of one pixel  | mlp                            |
| `resnet_cifar_stem` | ImageNet ResNet-18/34 with a 3x3 stem, for small images      | resnet18, resnet34             |
| `narrow_alexnet`    | AlexNet with 8 to 32 filters, for small images               | narrow_alexnet                 |
| `narrow_resnet`     | ImageNet ResNet-18/34/50 with 8 to 64 filters                | narrow_resnet{18,34}           |
| `narrow_vgg`        | VGG-11 with 16 to 128 filters, with or without batch norm    | narrow_vgg11                   |
| `torchvision`       | any torchvision classification net                           | torchvision                    |
| `timm`              | any net of timm, where that is installed                     | timm                           |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from hydra.utils import get_object
from torch import nn

from reprune.errors import UserError
from reprune.models.cifar_densenet import densenet
from reprune.models.cifar_googlenet import googlenet
from reprune.models.cifar_mobilenet import mobilenet_v1, mobilenet_v2
from reprune.models.cifar_preresnet import preresnet
from reprune.models.cifar_resnet import resnet, resnet_b
from reprune.models.cifar_vgg import vgg
from reprune.models.common import check_task
from reprune.models.lenet import lenet5, lenet300, mlp
from reprune.models.narrow import narrow_alexnet, narrow_resnet, narrow_vgg
from reprune.models.pretrained import weights_file
from reprune.models.timm_zoo import timm
from reprune.models.torchvision_zoo import resnet_cifar_stem, torchvision
from reprune.models.weights import load_weights
from reprune.structure.notes import note

__all__ = ["build", "check_task", "densenet", "googlenet", "lenet300", "lenet5", "load_weights", "mlp", "mobilenet_v1",
           "mobilenet_v2", "narrow_alexnet", "narrow_resnet", "narrow_vgg", "preresnet", "resnet", "resnet_b",
           "resnet_cifar_stem", "timm", "torchvision", "vgg", "weights_file"]

# The only names `build` calls, and those that `trust` adds. A checkpoint carries its model config, so a dotted path may
# come from a stranger's file: it is looked up here and never imported.
BUILDERS = {f"{__name__}.{f.__name__}": f for f in (
    resnet, resnet_b, preresnet, densenet, googlenet, mobilenet_v1, mobilenet_v2, vgg, lenet5, lenet300, mlp,
    resnet_cifar_stem, narrow_alexnet, narrow_resnet, narrow_vgg, torchvision, timm)}


def trust(target: str) -> None:
    """From now on `build` calls what lies at this dotted path, too: a net of the user's own, which the command line or
    the user's conf/ names. Raises UserError where there is none."""
    if target not in BUILDERS:
        try:
            BUILDERS[target] = get_object(target)
        except Exception as error:                                # whatever importing it ends in
            raise UserError(f"model._target_={target}: {' '.join(str(error).split())}") from error


def build(config: Mapping, builder: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The net of a resolved model node: `{"_target_": "reprune.models.resnet", "name": "resnet20", "depth": 20, ...}`.

    `name` is for tables only; `weights`, where set, is a file for `load_weights` or the name
    of published ones (pretrained.py); all other keys are arguments of the
    builder, the one given or what `_target_` names. Initial weights are drawn from torch's global generator: seed it
    before, where it matters.

    UserError: `_target_` is not a builder of this package; a key is unknown, missing or out of range; the weights
    do not fit.
    """
    options = {k: v for k, v in config.items() if k not in ("_target_", "name", "weights")}
    net = _builder(config.get("_target_"), options, builder)(**options)
    note(net, model={**config, "weights": None})
    if config.get("weights"):
        load_weights(net, weights_file(config))
    return net


def _builder(target, options: Mapping, builder: Callable[..., nn.Module] | None):
    """`builder`, or the allow-listed function called `target`, once its signature is known to accept `options`."""
    if builder is None and (not isinstance(target, str) or target not in BUILDERS):
        shown = f"{target!r:.100}" if isinstance(target, str) else f"a {type(target).__name__}"
        raise UserError(f"model._target_={shown} is not a model builder; the builders are: {', '.join(BUILDERS)}")
    builder = builder or BUILDERS[target]
    signature = inspect.signature(builder).parameters
    parameters = {k: p for k, p in signature.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    if not takes_any and (unknown := [str(k) for k in options if k not in parameters]):
        raise UserError(f"{target} has no option {', '.join(unknown)}; it takes: {', '.join(parameters)}")
    required = [k for k, p in parameters.items() if p.default is p.empty]
    if missing := [k for k in required if k not in options]:
        raise UserError(f"{target} needs the option {', '.join(missing)}; it takes: {', '.join(parameters)}")
    return builder
