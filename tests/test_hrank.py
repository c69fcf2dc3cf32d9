"""HRank: ranks of feature maps, image by image and map by map."""

import numpy as np
import pytest
import torch
from ga_nets import Fixed, images
from torch import nn

from reprune.errors import UserError
from reprune.methods.hrank import Rank
from reprune.models import build
from reprune.pruning.probe import Probe


def look(net, x) -> Probe:
    return Probe(net.eval(), x[:1], Fixed(x, torch.zeros(len(x)).long()), batch_size=3)


def chain() -> nn.Sequential:
    """A pooling behind the first ReLU, which works in place; then a flattened map. Some maps of low rank."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                        nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 2 * 2, 4))
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([-1.5, -1, -0.5, 0, 0.5, -9]))        # the more below zero, the emptier
    return net.eval()


def literal(maps) -> list[float]:
    """Mean over images of the rank of each map, one at a time."""
    return [sum(np.linalg.matrix_rank(maps[k, c].numpy()) for k in range(len(maps))) / len(maps)
            for c in range(maps.shape[1])]


def test_a_score_is_the_mean_rank_after_the_relu_and_before_the_pooling():
    net, x = chain(), images(8, size=10).float()                 # in batches of 3, 3 and 2: each image counts the same
    with torch.no_grad():
        first = torch.relu(net[1](net[0](x)))
        second = torch.relu(net[4](net[3](first)))
    scores = Rank()(look(net, x).groups, look(net, x))
    assert scores["0"].tolist() == pytest.approx(literal(first)) and scores["0"][5] == 0
    assert scores["4"].tolist() == pytest.approx(literal(second))
    assert scores["0"].unique().numel() > 3


def test_inner_maps_of_a_residual_net_are_those_of_its_first_convs():
    net, x = build({"_target_": "reprune.models.resnet", "depth": 8}), images(4, size=16).float()
    probe, seen = look(net, x), {}
    for block in ("layer1.0", "layer3.0"):
        net.get_submodule(f"{block}.bn1").register_forward_hook(
            lambda m, i, out, block=block: seen.setdefault(block, []).append(torch.relu(out)))
    with torch.no_grad():
        net(x)
    maps = {block: out[0] for block, out in seen.items()}
    scores = Rank()([g for g in probe.groups if not g.coupled], probe)
    for block, expected in maps.items():
        assert scores[f"{block}.conv1"].tolist() == pytest.approx(literal(expected.detach()))


def test_as_many_images_as_asked_for():
    net, x = chain(), images(8, size=10).float()
    drawn = torch.cat([batch for batch, _ in look(net, x).data.plain(3, 0, 5)])
    few, whole = look(net, x), look(net, drawn)
    assert torch.equal(Rank(n_samples=5)(few.groups, few)["0"], Rank()(whole.groups, whole)["0"])


def test_maps_of_one_place_are_refused():
    net, x = build({"_target_": "reprune.models.vgg", "depth": 16}), images(1, size=16).float()
    probe = look(net, x)
    groups = {g.name: g for g in probe.groups}
    Rank().check([groups["features.0"]], probe)
    with pytest.raises(UserError, match="features.40 have one row"):
        Rank().check([groups["features.40"]], probe)
    with pytest.raises(UserError, match="n_samples"):
        Rank(n_samples=0)
