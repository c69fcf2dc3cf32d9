"""ascp: what is merged is the same filter, the rate rises as it says, and removal changes nothing."""

import math

import pytest
import torch
from ga_nets import images, lively, look, reading, resnet8
from hydra.utils import instantiate
from test_resume import cut_again_and_again, result
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.methods.ascp import AddChannels, Clusters, Twins, averaged, cluster, merge
from reprune.pipeline import run

LABELS = torch.tensor([0, 1, 0, 2, 0, 1])
KEEP = torch.tensor([True, True, False, True, False, False])


def removed_by_addition(net, x):
    probe = look(net, x)
    smaller = reprune.remove(net, {"0": KEEP})
    return AddChannels()(smaller, probe)


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("reader", [lambda: nn.Conv2d(6, 4, 3, padding=1), lambda: nn.Conv2d(6, 4, 1, bias=False)])
def test_removal_is_exact_if_and_only_if_batch_norm_agrees(reader, norms):
    x = images()
    net = lively(reading(reader()), x)
    before = net(x)
    merge(net, look(net, x).groups[0], LABELS, norms)
    with torch.no_grad():
        whole = net(x)
        assert not torch.allclose(whole, before, rtol=1e-3)
        assert torch.equal(net[0].weight[0], net[0].weight[4]) and torch.equal(net[0].bias[1], net[0].bias[5])
        assert torch.equal(net[1].running_var[0], net[1].running_var[2]) == norms
        assert torch.allclose(removed_by_addition(net, x)(x), whole, rtol=1e-10) == norms


def test_it_is_exact_for_widths_that_an_addition_couples_and_behind_a_flatten():
    probe = resnet8(dtype=torch.float64)
    group, x = next(g for g in probe.groups if g.coupled), probe.data.x
    labels = torch.arange(group.size) % (group.size - 4)
    merge(probe.net, group, labels)
    with torch.no_grad():
        whole, keep = probe.net(x), torch.arange(group.size) < group.size - 4
        smaller = reprune.remove(probe.net, {group.name: keep})
        assert torch.allclose(AddChannels()(smaller, probe)(x), whole, rtol=1e-9)
    x = images()
    net = lively(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                               nn.Linear(6 * 9, 4)), x)
    merge(net, look(net, x).groups[0], LABELS)
    with torch.no_grad():
        assert torch.allclose(removed_by_addition(net, x)(x), net(x), rtol=1e-10)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_a_filter_becomes_the_mean_of_its_cluster(unit_norm):
    w = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    found = averaged(w, LABELS, unit_norm)
    for i in range(6):
        members = [w[j] for j in range(6) if LABELS[j] == LABELS[i]]
        expected = sum(members) / len(members)
        if unit_norm:                                             # opposite lengths do not cancel
            direction = sum(m / m.norm() for m in members)
            expected = direction / direction.norm() * sum(m.norm() for m in members) / len(members)
        assert torch.allclose(found[i], expected, atol=1e-6)
        assert all(torch.equal(found[i], found[j]) for j in range(6) if LABELS[j] == LABELS[i])
    assert torch.equal(found[3], w[3]) or unit_norm               # alone, to the bit


def test_clusters_are_those_of_the_nearest_means_and_begin_where_the_last_ones_were():
    w = torch.randn(24, 40, generator=torch.Generator().manual_seed(1))
    labels = cluster(w, 9, seed=0)
    means = torch.stack([w[labels == k].mean(0) for k in range(9)])               # none is empty
    assert all(min(range(9), key=lambda k: float((w[i] - means[k]).norm())) == int(labels[i]) for i in range(24))
    assert torch.equal(cluster(w, 9, seed=0), labels)

    def spread(labels):
        return sum(float((w[labels == k] - w[labels == k].mean(0)).square().sum()) for k in labels.unique())

    assert all(spread(cluster(w, 7, seed, labels)) <= spread(cluster(w, 7, seed)) + 1e-5 for seed in range(3))


@pytest.mark.parametrize(("decay", "expected"), [
    ("exp", [(1 - math.exp(-5 * t / 4)) / (1 - math.exp(-5)) for t in (1, 2, 4)]), ("linear", [0.25, 0.5, 1]),
    ("cosine", [(1 - math.cos(math.pi * t / 4)) / 2 for t in (1, 2, 4)]), ("step", [0.25, 0.5, 1])])
def test_the_rate_rises_by_its_law(decay, expected):
    assert [Clusters(None, None, decay).share(t, 4) for t in (1, 2, 4)] == pytest.approx(expected)


def test_copies_have_the_score_zero_and_the_first_of_them_has_not():
    net = lively(reading(nn.Conv2d(6, 4, 3)), images())
    probe = look(net, images())
    merge(net, probe.groups[0], LABELS)
    scores = Twins()(probe.groups[:1], probe)["0"]
    assert (scores > 0).tolist() == KEEP.tolist()
    w = net[0].weight.detach().flatten(1)
    assert float(scores[0]) == pytest.approx(min(float((w[0] - w[j]).norm()) for j in (1, 3)), rel=1e-6)
    merge(net, probe.groups[0], torch.zeros(6, dtype=torch.long))
    assert (Twins()(probe.groups[:1], probe)["0"] == 0).all()     # all are the same: one will do


def test_clusters_grow_with_the_epochs_stay_alike_and_go_without_a_trace(configure, monkeypatch, tmp_path):
    options = ["method=ascp", "recipe.sparse.epochs=4", "method.during.rise=0.5", "recipe.recover.epochs=0"]
    seen = []
    plain = merge

    def watched(net, group, labels, *rest):
        plain(net, group, labels, *rest)
        seen.append((group.name, len(labels.unique())))

    monkeypatch.setattr("reprune.methods.ascp.merge", watched)
    whole = run(configure(*options, f"output_dir={tmp_path}/whole"))
    counts = [n for name, n in seen if name == "layer1.0.conv1"]
    share = Clusters(None, None).share(1, 2)
    assert counts[0] == 16 - int(0.5 * share * 16) and set(counts[1:]) == {8}    # after every step from epoch 2 on
    assert len(counts) > 2 + 2                                    # that is, more often than once an epoch
    assert whole["pruned"]["top1_before_recovery"] == whole["sparse"]["top1"]
    assert whole["widths"]["layer1.0.conv1"] == [16, 8]
    assert result(cut_again_and_again(3, lambda: run(configure(*options)), monkeypatch)) == result(whole)


def test_other_criteria_find_no_copies(configure):
    method = instantiate(configure("method=ascp", "method.criterion._target_=reprune.methods.l1.FilterNorm").method)
    with pytest.raises(UserError, match="^method.during makes filters alike[^\n]*Twins[^\n]*got FilterNorm[^\n]*$"):
        method.check(resnet8())
