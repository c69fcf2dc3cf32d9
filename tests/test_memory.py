"""However large images and nets are, what looks at activations takes a bounded amount of memory, and the same scores
come out."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from ga_nets import Fixed
from torch import nn

from reprune.methods import output_error
from reprune.methods.ga import Genetic, OutputError
from reprune.methods.loss_increase import LossIncrease
from reprune.pruning.probe import Probe
from reprune.pruning.sensitivity import Sensitivity
from reprune.structure import suffix
from reprune.structure.cost import allocated

LIMIT = 4 * 2**20                      # bytes; all at once takes several times as much


class Images(Fixed):
    """The held-out images are those for training."""

    def __init__(self, x, y):
        super().__init__(x, y)
        self.parts = SimpleNamespace(train=torch.arange(len(x)), val=torch.arange(len(x)))

    def val(self, batch_size, device="cpu"):
        return self.plain(batch_size, 0)


@pytest.fixture
def probe() -> Probe:
    def conv(c_in: int, c_out: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]

    torch.manual_seed(0)
    net = nn.Sequential(*conv(3, 12), *conv(12, 12), *conv(12, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(8, 4)).eval()                   # a quarter MiB of activations for an image of 32 x 32
    x = torch.randn(32, 3, 32, 32)
    return Probe(net, x[:1], Images(x, torch.arange(32) % 4), batch_size=8)


def chosen(probe: Probe) -> dict:
    """Filters of the search, as the plan wants half of each group gone."""
    plan = {g.name: torch.arange(g.size) < g.size // 2 for g in probe.groups[:2]}
    return Genetic(error=OutputError(n_samples=32), generations=3, n_final=32, images=32)(plan, probe)


@pytest.mark.parametrize("look", [
    lambda probe: LossIncrease(n_samples=32, batch_size=32, images=32)(probe.groups[:2], probe),
    lambda probe: Sensitivity(images=32, rates=(0.25, 0.5), tau=4.0)({g.name: torch.arange(g.size) for g in
                                                                      probe.groups[:2]}, probe), chosen,
], ids=["loss increase", "sensitivity", "genetic"])
def test_the_batch_that_is_asked_for_is_taken_in_parts_where_it_would_not_fit(look, probe, monkeypatch):
    found, peaks = [], []
    for limit in (suffix.MEMORY, LIMIT):
        monkeypatch.setattr(suffix, "MEMORY", limit)
        probe.memo.clear()
        peaks.append(allocated(lambda: found.append(look(probe))))
    assert peaks[1] < 1.5 * LIMIT < 3 * LIMIT < peaks[0]
    for name, scores in found[0].items():
        torch.testing.assert_close(found[1][name], scores, rtol=0, atol=1e-6)


def test_unfolded_inputs_of_a_layer_are_taken_in_parts_too(probe, monkeypatch):
    found, peaks, probe = [], [], replace(probe, batch_size=32)
    for limit in (output_error.MEMORY, LIMIT):
        monkeypatch.setattr(output_error, "MEMORY", limit)
        probe.memo.clear()
        peaks.append(allocated(lambda: found.append(OutputError(n_samples=32, points=0)(probe.groups[:2], probe))))
    assert peaks[1] < 3 * LIMIT < peaks[0]                        # beside the batch in the net itself
    for name, scores in found[0].items():
        torch.testing.assert_close(found[1][name], scores)


def test_a_plan_is_evaluated_without_a_copy_of_the_net():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(108, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.Linear(1024, 4))
    x = torch.randn(4, 3, 6, 6)
    look = Probe(wide, x[:1], Images(x, torch.arange(4)), batch_size=4)
    plan = {g.name: torch.arange(g.size) > 0 for g in look.groups}
    weights = sum(p.numel() * p.element_size() for p in wide.parameters())
    assert allocated(lambda: (look.loss(plan), look.accuracy(plan))) < weights / 2
