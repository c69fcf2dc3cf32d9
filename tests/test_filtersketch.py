"""FilterSketch: frequent directions, row by row as in the authors' code; where the sketches lie in the smaller net."""

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from reprune.errors import UserError
from reprune.methods.filtersketch import Sketch, narrow, sketch
from reprune.models import build
from reprune.pipeline import prune
from reprune.pruning import PerLayer
from reprune.pruning.probe import Probe
from reprune.pruning.rounds import Round

EXAMPLE = torch.zeros(1, 3, 32, 32)


def literal(a, size):
    """The card: append rows; when B is full, stop or halve it."""
    b, at = torch.zeros(size, a.shape[1], dtype=a.dtype), 0
    for i in range(len(a)):
        if at == size:
            if len(a) - i < size // 2:
                break
            u, s, _ = torch.linalg.svd(b.T, full_matrices=False)
            s_hat = (s ** 2 - s[size // 2] ** 2).clamp_min(0).sqrt()
            b, at = torch.diag(s_hat) @ u.T, size // 2
        b[at] = a[i]
        at += 1
    return b


@pytest.mark.parametrize("n, d, size", [(16, 30, 9), (16, 30, 15), (40, 50, 8), (40, 50, 7), (9, 12, 1), (33, 40, 10)])
def test_a_sketch_is_frequent_directions_row_by_row(n, d, size):
    a = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sketch(a, size).T @ sketch(a, size), literal(a, size).T @ literal(a, size))


def test_a_sketch_keeps_the_covariance_within_the_bound_of_frequent_directions():
    a = torch.randn(60, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.diag(
        0.5 ** torch.arange(20.).double())
    b = sketch(a, 12)                                             # 48 rows in eight blocks of 6: none is left out
    assert torch.linalg.matrix_norm(a.T @ a - b.T @ b, 2) <= 2 * a.square().sum() / 12
    few = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = sketch(few, 8)                                        # rows shorter than l; one row is left out
    torch.testing.assert_close(whole.T @ whole, few[:8].T @ few[:8])


def test_the_inputs_are_slices_of_memory_unless_that_is_mended():
    w = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    quirk, mended = narrow(w, 1, 2, transpose=False), narrow(w, 1, 2)
    b = literal(w.contiguous().view(4, -1).double(), 2).float()
    torch.testing.assert_close(quirk.reshape(2, -1).abs(), b.abs() / b.norm())
    b = literal(w.transpose(0, 1).reshape(4, -1).double(), 2).float()
    torch.testing.assert_close(mended.transpose(0, 1).reshape(2, -1).abs(), b.abs() / b.norm())
    last = w.to(memory_format=torch.channels_last)                # strides are not what is meant by memory
    assert torch.equal(narrow(last, 1, 2, transpose=False), quirk)


def test_blocks_have_sketches_fresh_batch_norm_between_and_the_rest_of_the_old_net(configure):
    net = build({"_target_": "reprune.models.resnet", "depth": 8}).eval()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.running_mean.uniform_(-1, 1)
    method = instantiate(configure("method=filtersketch", "method.allocation.rate=0.4",
                                   "method.allocation.rounding=kept").method)
    probe = Probe(net, EXAMPLE)
    method.check(probe)
    smaller = prune(method, Round(), probe)
    for stage, width in ((1, 9), (2, 19), (3, 38)):
        old, new = net.get_submodule(f"layer{stage}.0"), smaller.get_submodule(f"layer{stage}.0")
        assert new.conv1.out_channels == width
        assert torch.equal(new.conv1.weight, narrow(old.conv1.weight, 0, width))
        assert torch.equal(new.conv2.weight, narrow(old.conv2.weight, 1, width, transpose=False))
        assert (new.bn1.weight == 1).all() and not new.bn1.bias.any() and not new.bn1.running_mean.any()
        assert all(torch.equal(tensor, old.bn2.state_dict()[name]) for name, tensor in new.bn2.state_dict().items())
    for name in ("conv1.weight", "bn1.running_mean", "linear.weight", "linear.bias"):
        assert torch.equal(smaller.state_dict()[name], net.state_dict()[name])


def test_a_conv_between_two_sketched_widths_is_sketched_twice(configure):
    net = build({"_target_": "reprune.models.vgg", "depth": 13}).eval()
    method = instantiate(configure("method=filtersketch").method)
    method.allocation = PerLayer(rates={1: 0.5, 2: 0.5, 10: 0.75})
    smaller = prune(method, Round(), Probe(net, EXAMPLE))
    second = narrow(narrow(net.features[3].weight, 0, 32), 1, 32, transpose=False)
    assert torch.equal(smaller.features[3].weight, second)
    assert smaller.classifier.weight.shape == (10, 128)           # rows of ten weights, fewer than there are inputs


def test_widths_that_others_share_are_refused(configure):
    probe = Probe(build({"_target_": "reprune.models.resnet", "depth": 8}), EXAMPLE)
    with pytest.raises(UserError, match="allocation.groups=inner"):
        instantiate(configure("method=filtersketch", "method.allocation.groups=all").method).check(probe)
    probe = Probe(build({"_target_": "reprune.models.densenet", "depth": 13}), EXAMPLE)
    with pytest.raises(UserError, match="and no others"):
        Sketch().check(probe.groups[:1], probe)
