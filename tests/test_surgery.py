"""Surgery on real nets: silencing equals removing, costs are predicted, the original stays as it was."""

import pytest
import torch
from nets import NAMES, build, check_removal, is_rewritten, lively, quiet_trace, random_plan, same, snapshot
from torch import nn

import reprune
from reprune import models
from reprune.structure.cost import CostTable
from reprune.structure.groups import traced
from reprune.structure.names import conv_numbers
from reprune.structure.surgery import silenced, zero_filters


@pytest.fixture(scope="module", params=NAMES)
def found(request):
    """A net, a batch for it and its groups."""
    net, x = build(request.param)
    return request.param, net, x, quiet_trace(net, x)


def test_removing_equals_silencing_and_costs_what_was_predicted_two_rounds_running(found):
    """The central property, on random plans that touch every group; the second round prunes the net the first made.
    Parameters and MACs of the result are known before anything is cut, and the net that was cut is not changed."""
    _, net, x, groups = found
    for seed in (0, 1):
        plan, before = random_plan(net, seed), snapshot(net)
        assert all(not plan[g.name].all() for g in groups if g.size > 1)
        smaller = check_removal(net, x, plan)
        assert same(snapshot(net), before)
        predicted = CostTable(net).plan(plan)
        assert reprune.cost(smaller, x) == predicted
        assert CostTable(net).plan({}) == reprune.cost(net, x)
        assert predicted.params < 0.6 * reprune.cost(net, x).params        # rate 0.4, on both sides of most layers
        net = lively(smaller, x, torch.Generator().manual_seed(1))
        groups = quiet_trace(net, x) if seed == 0 else []


def test_every_channel_but_the_input_and_the_logits_belongs_to_a_group(found):
    """A tracer that protects everything passes any equality. Filters are counted once: over all groups, the channels
    of an axis are all its channels."""
    name, net, x, groups = found
    convs = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    protected = {key for key, atoms in traced(net).axes.items() if (atoms < 0).any()}
    expected = {(convs[0][0], "in"), (convs[-1][0], "out")}
    if name == "googlenet":                                   # two auxiliary heads, each with logits of its own
        expected |= {("aux1.fc2", "out"), ("aux2.fc2", "out"), ("fc", "out")}
    assert protected == expected

    channels = {(n, axis): getattr(m, f"{axis}_channels" if isinstance(m, nn.Conv2d) else f"{axis}_features")
                for n, m in convs for axis in ("in", "out")}
    seen = dict.fromkeys(channels, 0)
    for group in groups:
        for s in group.slices:
            assert s.index.shape[0] == group.size
            if (s.module, s.axis) in seen:
                seen[s.module, s.axis] += s.index.unique().numel()
    assert seen == {key: 0 if key in expected else n for key, n in channels.items()}


def test_units_of_a_net_without_convs_are_removed_alike():
    """Most of its weights read the image, which stays whole: too few go for the property above to look at it."""
    generator, x = torch.Generator().manual_seed(0), torch.randn(4, 1, 32, 32, dtype=torch.float64)
    net = lively(models.lenet300().double(), x, generator)
    assert [(g.name, g.size) for g in quiet_trace(net, x)] == [("2", 300), ("4", 100)]
    assert conv_numbers(net) == {"2": 1, "4": 2, "6": 3}      # what there is to number, and to choose from
    plan = random_plan(net, 0)
    smaller = check_removal(net, x, plan)
    assert reprune.cost(smaller, x) == CostTable(net).plan(plan)


@pytest.mark.parametrize("name", ["cifar-resnet8", "cifar-vgg16", "mobilenet_v3_small", "googlenet", "densenet121"])
def test_a_net_in_training_mode_stays_in_it_and_trains_on(name):
    """Also with auxiliary heads (GoogLeNet): they are cut with the rest and give logits of their own."""
    net, x = build(name)
    net.train()
    next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)).eval()        # someone froze one BN
    modes = {n: m.training for n, m in net.named_modules()}
    quiet_trace(net, x)
    smaller = reprune.remove(net, random_plan(net, 0))
    assert {n: m.training for n, m in smaller.named_modules() if n in modes and n} == {n: modes[n] for n in modes if n}
    assert smaller.training and {n: m.training for n, m in net.named_modules()} == modes
    out = smaller(x)
    heads = [out] if isinstance(out, torch.Tensor) else list(out)
    assert len(heads) == (3 if name == "googlenet" else 1)
    sum(h.square().mean() for h in heads).backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in smaller.parameters())


@pytest.mark.parametrize("name", ["narrow-alexnet", "narrow-vgg11_bn"])
def test_dropout_still_drops_in_the_smaller_net_while_it_trains(name):
    net, x = build(name)
    quiet_trace(net.train(), x)
    smaller = reprune.remove(net, random_plan(net, 0))
    assert not torch.equal(smaller(x), smaller(x))
    smaller.eval()
    assert torch.equal(smaller(x), smaller(x))


def test_only_forward_code_that_counts_channels_is_rewritten():
    """Class and module names stay, so that code written for the net works on the pruned one; option A pads with a
    literal number of channels, which no module holds."""
    for name, rewritten in (("cifar-vgg16", False), ("mobilenet_v2", False), ("cifar-resnet8", True)):
        net, x = build(name)
        quiet_trace(net, x)
        smaller = reprune.remove(net, random_plan(net, 0))
        assert is_rewritten(smaller) == rewritten
        assert isinstance(smaller, type(net))
        assert list(smaller.state_dict()) == list(net.state_dict())
        assert type(smaller).__name__ == type(net).__name__


def test_an_empty_plan_removes_nothing_and_groups_a_plan_does_not_name_are_kept():
    net, x = build("cifar-resnet8")
    groups = quiet_trace(net, x)
    whole = reprune.remove(net, {})
    assert same(snapshot(whole), snapshot(net)) and torch.equal(whole(x), net(x))
    mask = torch.ones(groups[0].size, dtype=torch.bool)
    mask[0] = False
    one = reprune.remove(net, {groups[0].name: mask})
    everything = {g.name: torch.ones(g.size, dtype=torch.bool) for g in groups} | {groups[0].name: mask}
    assert same(snapshot(one), snapshot(reprune.remove(net, everything)))


def test_requires_grad_dtype_and_memory_layout_survive():
    """A net in channels_last with frozen parameters stays so; in float32 the property holds to its rounding."""
    torch.manual_seed(0)
    net = models.resnet(20).to(memory_format=torch.channels_last).eval()
    net.layer2[0].conv1.weight.requires_grad_(False)
    x = torch.randn(2, 3, 32, 32)
    reprune.trace(net, x)
    plan = random_plan(net, 0)
    smaller = reprune.remove(net, plan)
    for (name, new), old in zip(smaller.named_parameters(), net.parameters(), strict=True):
        assert new.dtype == old.dtype and new.requires_grad == old.requires_grad, name
        assert new.dim() != 4 or new.is_contiguous(memory_format=torch.channels_last), name
    torch.testing.assert_close(smaller(x), reprune.silence(net, plan)(x), rtol=1e-4, atol=1e-6)


def test_silenced_filters_are_zero_and_all_else_is_as_before():
    """silence touches what remove takes away and nothing more: what is left after removal is bit-equal to the kept
    part of the silenced net."""
    net, x = build("cifar-resnet20")
    quiet_trace(net, x)
    plan = random_plan(net, 0)
    silent, smaller = reprune.silence(net, plan).state_dict(), reprune.remove(net, plan).state_dict()
    for name, tensor in net.state_dict().items():
        if name.endswith(("weight", "bias")):
            assert int((silent[name] != 0).sum()) == smaller[name].numel()
            assert torch.equal(silent[name][silent[name] != 0], smaller[name].flatten())
            assert torch.equal(silent[name][silent[name] != 0], tensor[silent[name] != 0])
        else:
            assert torch.equal(silent[name], tensor)


def test_zero_filters_is_soft():
    """SFP zeroes the filters in place and leaves BN and the reading layers alone, so that they can come back."""
    net, x = build("cifar-vgg16")
    quiet_trace(net, x)
    plan, before = random_plan(net, 0), snapshot(net)[0]
    zero_filters(net, plan)
    gone = ~plan["features.3"]
    assert not net.features[3].weight[gone].any()
    assert torch.equal(net.features[3].weight[~gone][:, :1], before["features.3.weight"][~gone][:, :1])
    assert torch.equal(net.features[4].weight, before["features.4.weight"])
    assert bool((net.features[3].weight[~gone] == before["features.3.weight"][~gone]).all())


@pytest.mark.parametrize("name", ["cifar-resnet20", "densenet121", "mobilenet_v3_small", "resnext50_32x4d"])
def test_silenced_is_silence_without_a_copy_and_leaves_every_bit(name):
    net, x = build(name)
    quiet_trace(net, x)
    before, plan, other = snapshot(net), random_plan(net, 0), random_plan(net, 1)
    with torch.no_grad():
        whole, expected = net(x), [reprune.silence(net, p)(x) for p in (plan, other)]
        for wanted, p in zip(expected, (plan, other), strict=True):
            with silenced(net, p) as silent:
                assert silent is net and torch.equal(net(x), wanted) and not torch.equal(wanted, whole)
            assert same(snapshot(net), before)
        with silenced(net, plan), silenced(net, other):           # one inside the other
            pass
    with pytest.raises(ZeroDivisionError), silenced(net, plan):
        raise ZeroDivisionError
    with pytest.raises(reprune.errors.UserError), silenced(net, {"no such layer": torch.ones(1, dtype=torch.bool)}):
        pass
    assert same(snapshot(net), before)
