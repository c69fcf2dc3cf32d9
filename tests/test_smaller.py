"""reprune.prune: one call from a trained net to a smaller one."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reprune
from reprune.errors import UserError
from reprune.models import resnet
from reprune.pruning.sockets import Criterion

CHOICES = ["apoz", "bn_tells", "fpgm", "hrank", "l1", "l1std", "random", "slimming", "taylor2016", "taylor2019",
           "thinet"]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = resnet(8)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return net.eval()


@pytest.fixture(scope="module")
def loader():
    return DataLoader(TensorDataset(torch.randn(12, 3, 16, 16), torch.arange(12) % 10), 5)


EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize("criterion", CHOICES)
def test_half_the_macs_by_any_criterion(criterion, net, loader):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    small = reprune.prune(net, EXAMPLE, macs=0.5, criterion=criterion, data=loader)
    assert reprune.cost(small, EXAMPLE).macs <= 0.5 * reprune.cost(net, EXAMPLE).macs
    x = torch.randn(2, 3, 16, 16)
    silent = reprune.silence(net, reprune.plan(small))
    assert torch.allclose(small(x), silent(x), atol=1e-5) and not torch.allclose(small(x), net(x), atol=1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_widths_floors_and_new_statistics(net, loader):
    small = reprune.prune(net, EXAMPLE, params=0.6, groups="all", spread="global", multiple=4, min_keep=0.25)
    again = reprune.prune(net, EXAMPLE, params=0.6, groups="all", spread="global", multiple=4, min_keep=0.25,
                          recalibrate=loader)
    plan = reprune.plan(small)
    assert all(int(mask.sum()) % 4 == 0 and mask.float().mean() >= 0.25 for mask in plan.values())
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), again.parameters(), strict=True))
    assert not torch.equal(small.bn1.running_mean, again.bn1.running_mean)
    assert reprune.plan(net) == {}


def test_refit_brings_outputs_nearer(net):
    batches = [(torch.randn(16, 3, 16, 16), torch.arange(16) % 10) for _ in range(8)]
    cut, fitted = (reprune.prune(net, EXAMPLE, macs=0.7, refit=some) for some in (None, batches))
    x = torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        errors = [(small(x) - net(x)).norm() for small in (cut, fitted)]
    assert errors[1] < 0.7 * errors[0]
    assert all(torch.equal(mask, reprune.plan(cut)[name]) for name, mask in reprune.plan(fitted).items())


def test_a_criterion_of_the_users_own(net):
    class First(Criterion):
        def score(self, group, probe):
            return torch.arange(group.size).float()

    small = reprune.prune(net, EXAMPLE, macs=0.5, criterion=First())
    assert all(mask.diff().int().sum() <= 1 and mask[-1] for mask in reprune.plan(small).values())


@pytest.mark.parametrize(("given", "told"), [
    ({}, "allocation: give either macs or params"), ({"macs": 0.5, "criterion": "l7"}, "criterion 'l7' is not known"),
    ({"macs": 1e-4}, "cannot be met"), ({"macs": 0.5, "criterion": "hrank"}, "give data=LOADER"),
    ({"macs": 0.5, "criterion": "hrank", "data": []}, "data holds no batch")])
def test_what_cannot_be_is_one_line(given, told, net):
    with pytest.raises(UserError, match=told) as error:
        reprune.prune(net, EXAMPLE, **given)
    assert "\n" not in str(error.value)
