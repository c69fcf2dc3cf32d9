"""results/compatibility.md: what can be pruned of torchvision's and timm's CNNs, beside torch-pruning on the same nets.

    python tests/compatibility.py [--only 'timm/res*'] [--report results/compatibility.md]

Weights are random, batch norm is as after training (`nets.lively`), everything is in float64. Each net and each pruner
has a process of its own with a time limit. 40 % of the filters of every group go, at random; the smaller net is
compared with the whole one whose filters are zero. The error is a fraction of the change that a small change of the
input makes.
"""

import argparse
import contextlib
import copy
import json
import os
import subprocess
import sys
import warnings
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter

from compatibility_report import write

SIZES = (64, 96, 128, 224, 299)         # pixels: the smallest that a net takes
LIMIT = 240                             # seconds of one pruner on one net
TIMM = """cs3darknet_focus_s cspdarknet53 cspresnet50 cspresnext50 convnext_atto darknet53 densenetblur121d dla46_c
dla60_res2net dpn68 eca_nfnet_l0 ecaresnet26t edgenext_xx_small efficientnet_b0 efficientnet_b0_gn efficientnet_es
efficientnetv2_rw_t ese_vovnet19b_dw fasternet_t0 fbnetc_100 gcresnet33ts gernet_s ghostnet_100 ghostnetv2_100
hardcorenas_a hgnetv2_b0 hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v4 lcnet_100
legacy_seresnet18 mixnet_s mnasnet_100 mobilenetv3_large_100 mobilenetv4_conv_small mobileone_s0 nf_regnet_b0
nf_resnet26 nfnet_l0 poolformer_s12 regnety_002 regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s
resnest14d resnet10t resnetaa34d resnetblur18 resnetv2_50 rexnet_100 selecsls42 seresnext26d_32x4d skresnet18
starnet_s050 tinynet_e tresnet_m vovnet39a xception41"""


def names():
    import torchvision

    seen, found = set(), []
    for name in torchvision.models.list_models(module=torchvision.models):
        if not name.startswith(("vit", "swin", "maxvit")) and name not in seen:
            found.append(f"torchvision/{name}")
    return found + [f"timm/{name}" for name in TIMM.split()]


def build(name):
    """-> the net in eval mode, and two images for it"""
    import torch
    from nets import lively

    library, _, model = name.partition("/")
    torch.manual_seed(0)
    if library == "timm":
        import timm
        net = timm.create_model(model)
    else:
        import torchvision
        net = torchvision.models.get_model(model, **{"init_weights": False} if model in ("googlenet", "inception_v3")
                                           else {})
    net = net.double().eval()
    for size in SIZES:
        x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with contextlib.suppress(RuntimeError, ValueError, AssertionError), torch.no_grad():
            net(x[:1])
            return lively(net, x, torch.Generator().manual_seed(0)), x
    raise ValueError("no image size fits")


def error(net, silent, smaller, x):
    """Largest difference of two nets, beside what a small change of the images changes."""
    import torch

    with torch.no_grad():
        expected, noise = silent(x), torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        signal = (silent(x + .1 * noise) - expected).abs().max()
        difference = (smaller(x) - expected).abs().max()
        assert (net(x) - expected).abs().max() > 1e-6 * signal > 0, "the comparison would prove nothing"
    return (difference / signal).item()


def ours(net, x, found):
    import torch
    from nets import random_plan

    import reprune
    from reprune.structure.cost import CostTable

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = perf_counter()
        groups = reprune.trace(net, x[:1])
        found.update(traced=True, seconds=perf_counter() - start, groups=len(groups))
    found["warnings"] = [str(w.message) for w in caught]
    whole, table = reprune.cost(net, x[:1]), CostTable(net)
    removed = torch.tensor([int(.4 * g.size) for g in groups])
    cut, base = table.after(removed), table.plan({})
    found.update(params=whole.params, macs=whole.macs, params_cut=1 - cut.params / base.params,
                 macs_cut=1 - cut.macs / base.macs)
    if groups:
        plan = random_plan(net, 0)
        smaller = reprune.remove(net, plan)
        found["error"] = error(net, reprune.silence(net, plan), smaller, x)
        found["cost_known"] = reprune.cost(smaller, x[:1]) == table.plan(plan)


def theirs(net, x, found):
    import torch
    import torch_pruning as tp
    from torch import nn

    last = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    heads = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == 1000] or [last]
    params = sum(p.numel() for p in net.parameters())
    macs = tp.utils.count_ops_and_params(net, x[:1])[0]
    start = perf_counter()
    tp.DependencyGraph().build_dependency(net, example_inputs=x[:1])
    found.update(seconds=perf_counter() - start, builds=True)
    whole, masked = copy.deepcopy(net), copy.deepcopy(net)
    pruner = tp.pruner.BasePruner(net, x[:1], importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=.4,
                                  ignored_layers=heads)
    paths, left = {m: n for n, m in net.named_modules()}, {}
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            mask(masked, paths.get(dependency.target.module), dependency.handler.__name__, list(indices), left)
        group.prune()
    found.update(prunes=True, params_cut=1 - sum(p.numel() for p in net.parameters()) / params)
    with torch.no_grad():
        net(x)
    found.update(runs=True, macs_cut=1 - tp.utils.count_ops_and_params(net, x[:1])[0] / macs)
    found["error"] = error(whole, masked, net, x)


def mask(net, path, handler, indices, left):
    """Zeroes, in the whole net, what torch-pruning takes out of a layer; its indices count what is left by then."""
    import torch

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


def child(name, pruner):
    """Prints what one pruner has done to one net, also where it has failed."""
    found = {}
    try:
        {"ours": ours, "theirs": theirs}[pruner](*build(name), found)
    except BaseException as failed:                               # whatever a net or a pruner ends in
        found["failed"] = f"{type(failed).__name__}: {' '.join(str(failed).split())[:300]}"
    print("\n" + json.dumps(found))


def measured(name, pruner):
    command = ["nice", "-n", "19", sys.executable, __file__, "--net", name, "--pruner", pruner]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT,
                             env={**os.environ, "OMP_NUM_THREADS": "1"})
    except subprocess.TimeoutExpired:
        return {"failed": f"no end after {LIMIT} s"}
    try:
        return json.loads(out.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"failed": f"ended with {out.returncode}: {out.stderr.strip()[-200:]}"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="*", help="pattern of names, as timm/res*")
    parser.add_argument("--report", type=Path, default=Path("results/compatibility.md"))
    parser.add_argument("--net", help=argparse.SUPPRESS)
    parser.add_argument("--pruner", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.net:
        child(options.net, options.pruner)
        return
    record = options.report.with_suffix(".json")
    rows = json.loads(record.read_text()) if record.exists() else {}
    for name in [n for n in names() if fnmatch(n, options.only)]:
        rows[name] = {"ours": measured(name, "ours"), "theirs": measured(name, "theirs")}
        print(name, json.dumps(rows[name]), flush=True)
        write(rows, options.report)


if __name__ == "__main__":
    main()
