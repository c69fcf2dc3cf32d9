"""group_fisher is its equation, and takes one filter away every so many steps of training."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from ga_nets import resnet8

from reprune.errors import UserError
from reprune.methods.group_fisher import GroupFisher, Masks, Removal, importance
from reprune.methods.random import Random
from reprune.pipeline import run
from reprune.pruning import Budget


def literal(probe, group, order=2) -> torch.Tensor:
    """Image by image, with masks that multiply what each layer reads."""
    masks = {s.module: torch.ones(probe.net.get_submodule(s.module).weight.shape[1], requires_grad=True)
             for s in group.readers()}
    hooks = [probe.net.get_submodule(m).register_forward_pre_hook(
        lambda module, inputs, m=m: (inputs[0] * masks[m].view(-1, *[1] * (inputs[0].dim() - 2)),)) for m in masks]
    total = torch.zeros(group.size, dtype=torch.float64)
    with torch.enable_grad():
        for x, y in zip(probe.data.x.split(1), probe.data.y.split(1), strict=True):
            found = torch.autograd.grad(F.cross_entropy(probe.net(x), y), list(masks.values()))
            for i in range(group.size):
                one = sum(float(gradient[c]) for s, gradient in zip(group.readers(), found, strict=True)
                          for c in s.index[i].tolist())
                total[i] += abs(one) ** order
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("order", [1, 2])
def test_coupled_gradients_are_summed_before_they_are_squared(order):
    probe = resnet8(n=8)                                          # in batches of three
    groups = [probe.groups[0], probe.groups[1]]
    assert groups[0].coupled and len(groups[0].readers()) > 1 and not groups[1].coupled
    scores = GroupFisher(normalize="none", order=order)(groups, probe)
    for group in groups:
        assert torch.allclose(scores[group.name].double(), literal(probe, group, order), rtol=1e-3)


def test_scores_are_divided_by_what_goes_with_a_filter():
    probe = resnet8(n=6)
    inner = next(g for g in probe.groups if g.name == "layer1.0.conv1")
    plain, memory, macs = (GroupFisher(normalize=n)([inner], probe)[inner.name] for n in ("none", "memory", "macs"))
    assert torch.allclose(memory, plain / (16 * 16))              # a map of 16 x 16
    assert torch.allclose(macs, plain / (16 * 16 * 9 * (16 + 16)))       # 16 channels in, 16 out
    gone = {probe.groups[0].name: torch.arange(16) >= 4}          # of the trunk: both are 12 by then
    assert GroupFisher(normalize="macs").saved(inner, probe, gone) == 16 * 16 * 9 * (12 + 12)


def test_nothing_of_a_batch_is_kept_when_it_has_been_gone_through():
    probe = resnet8(n=6)
    masks = Masks(probe.net, probe.groups)
    gc.disable()                                                  # it comes too late for activations
    try:
        with torch.enable_grad():
            F.cross_entropy(probe.net(probe.data.x), probe.data.y).backward()
        seen = [weakref.ref(x) for x in masks.inputs]
        assert masks.take() and seen and not any(x() is not None for x in seen)
    finally:
        gc.enable()
        masks.remove()


RUN = ["method=group_fisher", "method.during.interval=2", "recipe.batch_size=60", "method.allocation.groups=inner"]


def test_one_filter_goes_every_interval_until_the_budget_is_met_and_stays_silent(configure, monkeypatch):
    counts, ask = [], Removal.on_train_batch_end

    def spy(self, trainer, module, *args):
        ask(self, trainer, module, *args)
        counts.append(sum(int((~keep).sum()) for keep in self.plan.values()))
        for group in self.groups:
            for s in group.producers(module.net):
                weight = module.net.get_submodule(s.module).weight.flatten(1).abs().sum(1)
                assert torch.equal(weight[s.index[:, 0]] > 0, self.plan[group.name])

    monkeypatch.setattr(Removal, "on_train_batch_end", spy)
    record = run(configure(*RUN, "method.allocation.macs=0.9", "recipe.sparse.epochs=6"))
    assert counts[:6] == [0, 1, 1, 2, 2, 3]
    assert counts[-1] == counts[-3] < len(counts) // 2            # enough before the end
    gone = sum(before - after for before, after in record["widths"].values())
    assert gone <= counts[-1] <= gone + 1 and record["pruned"]["macs"] <= 0.9 * record["baseline"]["macs"]


def test_the_last_smaller_batch_counts_image_by_image():
    """A loss is the mean of its batch: gradients of a small one are not larger."""
    probe = resnet8(n=6)
    group, found = probe.groups[1], []
    for size in (6, 2):
        masks, total = Masks(probe.net, [group]), 0
        for x, y in zip(probe.data.x.split(size), probe.data.y.split(size), strict=True):
            F.cross_entropy(probe.net(x), y).backward()
            gradients = masks.take()[group.name]
            total = total + importance(len(gradients) * gradients)
        masks.remove()
        found.append(total)
    assert torch.allclose(found[0], found[1], rtol=1e-3)
    assert not any(m._forward_pre_hooks for m in probe.net.modules())


@pytest.mark.parametrize("allocation", ["uniform", "macs"])
def test_an_allocation_without_a_budget_for_all_is_refused_before_anything_trains(allocation, configure, monkeypatch):
    monkeypatch.setattr("reprune.pipeline.fit", lambda *_, **__: pytest.fail("something trains"))
    with pytest.raises(UserError, match=r"^method\.during removes [^\n]*macs_global[^\n]*$"):
        run(configure("method=group_fisher", f"method/allocation={allocation}"))


def test_another_criterion_is_refused():
    with pytest.raises(UserError, match=r"^method\.during removes [^\n]*GroupFisher, got Random[^\n]*$"):
        Removal(Random(), Budget(macs=0.5, spread="global")).check([], None)
