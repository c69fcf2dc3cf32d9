"""Many sets of silenced filters at once: the logits are those of full forward passes."""

import pytest
import torch
from ga_nets import Branches, images, lively, masks
from nets import build

import reprune
from reprune.structure.suffix import Suffix


@pytest.mark.parametrize("name", ["cifar-resnet8", "mobilenet_v3_small", "squeezenet1_1", "two inputs per filter"])
@pytest.mark.parametrize("at_once", [1, 1000])
def test_logits_without_sets_of_filters_equal_full_forward_passes(name, at_once):
    x = images(4)
    net, x = (lively(Branches(), x), x) if name == "two inputs per filter" else build(name)
    net, x = net.float(), x.float()
    groups = reprune.trace(net, x)
    with torch.no_grad():
        suffix, whole = Suffix(net, x, torch.zeros(len(x), dtype=torch.long), at_once), net(x)
        scale = whole.abs().max()
        assert (suffix.logits - whole).abs().max() <= 1e-5 * scale
        for group in [groups[i] for i in sorted({0, 1, len(groups) // 2, len(groups) - 1})]:
            gone = torch.cat([masks(group.size, 3)[[0, -3, -2, -1]], torch.zeros(1, group.size, dtype=torch.bool)])
            slow = torch.stack([reprune.silence(net, {group.name: ~g})(x) for g in gone])
            fast = suffix.logits_without(group, gone)
            assert (fast - slow).abs().max() <= 1e-5 * scale, group.name
            assert (slow[:-1] - whole).abs().amax((1, 2)).max() > 1e-3 * scale, group.name    # the net listens
