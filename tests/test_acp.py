"""ACP: like channels are one cluster, and the swarm looks for other widths of no more MACs."""

import math

import pytest
import torch
from test_methods import look, small_net

from reprune.methods.acp import Clusters, Swarm, clusters


def literal(maps, eps):
    """Leaders, strongest map first. -> {leader: members}"""
    found = {}
    for c in sorted(range(len(maps)), key=lambda c: -math.hypot(*maps[c])):
        for leader in found:
            dot = sum(a * b for a, b in zip(maps[c], maps[leader], strict=True))
            if 1 - dot / (math.hypot(*maps[c]) * math.hypot(*maps[leader])) <= eps:
                found[leader].append(c)
                break
        else:
            found[c] = [c]
    return found


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
def test_clusters_are_those_found_one_by_one(eps):
    maps = torch.rand(12, 5, generator=torch.Generator().manual_seed(0))
    scores, expected = clusters(maps, eps), literal(maps.tolist(), eps)
    assert {c for c, score in enumerate(scores.tolist()) if score >= 1} == set(expected)
    assert [round(float(scores[c] - 1) * 12 - 0.5) for c in expected] == [len(members) for members in expected.values()]


def test_a_swarm_never_costs_more_than_the_clusters_and_never_loses_more():
    probe = look(small_net(), torch.zeros(1, 3, 12, 12))
    scores = Clusters(eps=0.02, n_samples=8)(probe.groups, probe)
    scores["0"], scores["3"] = torch.tensor([1.5, 1.2, 1.1, .1, .2, .3]), torch.tensor([1.5, 1.2, .1, .2, .3])
    alone, found = (Swarm(particles=n, steps=3, spread=0.5, n_samples=8)(scores, probe) for n in (0, 6))
    assert {name: int(keep.sum()) for name, keep in alone.items()} == {"0": 3, "3": 2}
    assert probe.cost(found).macs <= probe.cost(alone).macs
    assert probe.loss(found, 8) <= probe.loss(alone, 8)
