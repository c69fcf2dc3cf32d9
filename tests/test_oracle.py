"""torch-pruning's dependency graph as an independent oracle: for the same filters both remove the same parameters.

Only nets on which version 1.6.1 is right: it ignores the channel offset of F.pad (option-A shortcuts), takes filters
out of conv groups where we take whole groups, and does not see auxiliary heads.
"""

import copy

import pytest
import torch
from nets import build, quiet_trace, random_plan

import reprune

tp = pytest.importorskip("torch_pruning", reason="the oracle is a development dependency: pip install torch-pruning")

NETS = ("cifar-vgg13", "cifar-vgg16", "cifar-vgg16-512", "cifar-resnet8b", "cifar-preresnet20", "cifar-densenet13",
        "cifar-googlenet", "cifar-mobilenet_v1", "cifar-mobilenet_v2", "cifar-stem-resnet18", "lenet5", "alexnet",
        "resnet18", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0",
        "squeezenet1_1", "mnasnet1_0")


def oracle(net, x, plan):
    """`remove` by torch-pruning: filter by filter of the layer each group is named after."""
    groups = {g.name: g for g in quiet_trace(net, x)}
    net = copy.deepcopy(net)
    graph = tp.DependencyGraph().build_dependency(net, example_inputs=x[:1])
    for name, mask in plan.items():
        lead = groups[name].producers(net)[0]
        layer = net.get_submodule(lead.module)
        cut = tp.prune_linear_out_channels if isinstance(layer, torch.nn.Linear) else tp.prune_conv_out_channels
        graph.get_pruning_group(layer, cut, lead.index[~mask].flatten().tolist()).prune()
    return net


@pytest.mark.parametrize("name", NETS)
def test_both_remove_the_same_parameters(name):
    """Every tensor of the two nets is equal, not only their number: same filters, same inputs, same BN entries."""
    net, x = build(name)
    quiet_trace(net, x)
    plan = random_plan(net, 0)
    ours, theirs = reprune.remove(net, plan), oracle(net, x, plan)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in other.items()}
    assert all(torch.equal(mine[k], other[k]) for k in mine)
    assert reprune.cost(ours, x).params == sum(p.numel() for p in theirs.parameters())
    assert torch.equal(ours(x), theirs(x))
