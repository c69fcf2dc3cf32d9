"""What one pruner makes of one net.

Weights are random, batch norm is as after training (`nets.lively`), everything is in float64.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from time import process_time

import torch
import torchvision
from nets import lively, random_plan
from torch import Tensor, nn

import reprune
from reprune.structure.cost import CostTable

SIZES = (64, 96, 128, 224, 299)         # pixels: the smallest that a net takes
RATE = 0.4
LEFT_OUT = ("vit", "swin", "maxvit",    # transformers; copies of 645 million parameters in float64 take 15 GB
            "regnet_y_128gf")
TIMM = """cs3darknet_focus_s cspdarknet53 cspresnet50 cspresnext50 convnext_atto darknet53 densenetblur121d dla46_c
dla60_res2net dpn68 eca_nfnet_l0 ecaresnet26t edgenext_xx_small efficientnet_b0 efficientnet_b0_gn efficientnet_es
efficientnetv2_rw_t ese_vovnet19b_dw fasternet_t0 fbnetc_100 gcresnet33ts gernet_s ghostnet_100 ghostnetv2_100
hardcorenas_a hgnetv2_b0 hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v4 lcnet_100
legacy_seresnet18 mixnet_s mnasnet_100 mobilenetv3_large_100 mobilenetv4_conv_small mobileone_s0 nf_regnet_b0
nf_resnet26 nfnet_l0 poolformer_s12 regnety_002 regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s
resnest14d resnet10t resnetaa34d resnetblur18 resnetv2_50 rexnet_100 selecsls42 seresnext26d_32x4d skresnet18
starnet_s050 tinynet_e tresnet_m vovnet39a xception41"""


def names() -> list[str]:
    found = [n for n in torchvision.models.list_models(module=torchvision.models) if not n.startswith(LEFT_OUT)]
    return [f"torchvision/{n}" for n in found] + [f"timm/{n}" for n in TIMM.split()]


def build(name: str) -> tuple[nn.Module, Tensor]:
    """-> the net in eval mode, and two images for it"""
    library, _, model = name.partition("/")
    torch.manual_seed(0)
    if library == "timm":
        import timm

        net = timm.create_model(model)
    else:
        options = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
        net = torchvision.models.get_model(model, **options)
    net = net.double().eval()
    for path, parameter in net.named_parameters():
        if not path.endswith(("weight", "bias")):                 # a layer scale of 1e-6 would hide all that it scales
            nn.init.uniform_(parameter, .5, 1.5)
    for size in SIZES:
        x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with contextlib.suppress(RuntimeError, ValueError, AssertionError), torch.no_grad():
            net.eval()(x[:1])                                     # training needs larger images of some
            return lively(net, x, torch.Generator().manual_seed(0)), x
    raise ValueError("no image size fits")


@torch.no_grad()
def error(net: nn.Module, silent: nn.Module, smaller: nn.Module, x: Tensor) -> float:
    """Largest difference of two nets, beside what a small change of the images changes."""
    expected, noise = silent(x), torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    signal = (silent(x + .1 * noise) - expected).abs().max()
    difference = (smaller(x) - expected).abs().max()
    assert (net(x) - expected).abs().max() > 1e-6 * signal > 0, "the comparison would prove nothing"
    return (difference / signal).item()


def ours(net: nn.Module, x: Tensor, found: dict) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = process_time()
        groups = reprune.trace(net, x[:1])
        found.update(traced=True, seconds=process_time() - start, groups=len(groups))
    found["warnings"] = [str(w.message) for w in caught]
    table = CostTable(net)
    base, cut = table.plan({}), table.after(torch.tensor([int(RATE * g.size) for g in groups]))
    found.update(params_cut=1 - cut.params / base.params, macs_cut=1 - cut.macs / base.macs,
                 cost_known=reprune.cost(net, x[:1]) == base)
    if groups:
        plan = random_plan(net, 0, RATE)
        smaller = reprune.remove(net, plan)
        found["error"] = error(net, reprune.silence(net, plan), smaller, x)
        found["cost_known"] &= reprune.cost(smaller, x[:1]) == table.plan(plan)


def theirs(net: nn.Module, x: Tensor, found: dict) -> None:
    import torch_pruning as tp

    last = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    heads = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == 1000] or [last]
    base = reprune.cost(net, x[:1])
    start = process_time()
    tp.DependencyGraph().build_dependency(net, example_inputs=x[:1])
    found.update(builds=True, seconds=process_time() - start)
    whole, masked = copy.deepcopy(net), copy.deepcopy(net)
    pruner = tp.pruner.BasePruner(net, x[:1], importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=RATE,
                                  ignored_layers=heads)
    paths, left = {m: n for n, m in net.named_modules()}, {}
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            mask(masked, paths.get(dependency.target.module), dependency.handler.__name__, list(indices), left)
        group.prune()
    found.update(prunes=True, params_cut=1 - sum(p.numel() for p in net.parameters()) / base.params)
    cut = reprune.cost(net, x[:1])
    found.update(runs=True, macs_cut=1 - cut.macs / base.macs)
    found["error"] = error(whole, masked, net, x)


def mask(net: nn.Module, path: str | None, handler: str, indices: list[int], left: dict) -> None:
    """Zeroes, in the whole net, what torch-pruning takes out of a layer; its indices count what is left by then."""
    if path is None:
        return
    module, dim = net.get_submodule(path), int("in_channels" in handler and "depthwise" not in handler)
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() <= dim or getattr(module, "groups", 1) > 1 and dim:
        return
    still = left.setdefault((path, dim), list(range(weight.shape[dim])))
    gone = torch.tensor(sorted({still[i] for i in indices if i < len(still)}), dtype=torch.long)
    weight.data.index_fill_(dim, gone, 0)
    if dim == 0 and getattr(module, "bias", None) is not None:
        module.bias.data.index_fill_(0, gone, 0)
    left[path, dim] = [c for c in still if c not in set(gone.tolist())]


PRUNERS = {"ours": ours, "theirs": theirs}


def measure(name: str, pruner: str, found: dict) -> None:
    PRUNERS[pruner](*build(name), found)


def warm_up(pruner: str) -> None:
    """Imports, and whatever else a pruner does once."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(8, 5)).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    PRUNERS[pruner](lively(net, x, torch.Generator().manual_seed(0)), x, {})
