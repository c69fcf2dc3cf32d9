"""A budget of time: met and just met under a table of known times, measured once, and refused where it cannot be met.

No time is taken but in one test, which looks at no number: a clock that is a function of widths stands in."""

import math
import re

import pytest
import torch
from torch import nn

import reprune
from reprune.errors import UserError
from reprune.models import resnet
from reprune.pipeline import run
from reprune.pruning.latency import Latency, batch
from reprune.pruning.probe import Probe
from reprune.structure import timing
from reprune.structure.surgery import remove
from reprune.structure.timing import Times

EXAMPLE = torch.zeros(1, 3, 8, 8)
STEP = 16                                                         # widths in between cost this device the same


def seconds(operation: str) -> float:
    """Of a convolution, by blocks of channels that it reads and makes; any other operation takes a microsecond."""
    found = re.search(r"conv2d.*?, '\w+\[(\d+), (\d+)", operation)
    return 1e-6 if found is None else 1e-4 * math.prod(math.ceil(int(n) / STEP) for n in found.groups())


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The operations that are measured, pass by pass; by a clock that knows all times."""
    passes = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing, "measured", lambda net, x, operations: [
        seconds(name) for name in passes.append(operations) or operations])
    return passes


@pytest.fixture(scope="module")
def look():
    torch.manual_seed(0)
    return Probe(resnet(8, width=2), EXAMPLE)


def scores(look):
    return {g.name: torch.rand(g.size, generator=torch.Generator().manual_seed(g.size)) for g in look.groups}


@pytest.mark.parametrize("options", [{"time": 0.5}, {"time": 0.6, "spread": "global", "multiple": 4, "groups": "inner"},
                                     {"ms": 7.0, "batch_size": 2}])
def test_the_budget_is_met_and_no_width_would_be_free(options, look, asked):
    allocation = Latency(**options)
    plan = allocation(scores(look), look)
    times = Times(look.net, batch(look, allocation.batch_size))
    budget = allocation.ms / 1000 if allocation.ms else allocation.time * times({})
    assert 0 < times(plan) <= budget < times({})
    assert times(plan) == pytest.approx(sum(map(seconds, times.operations(plan))))
    shrunk = {name: keep for name, keep in plan.items() if not keep.all()}
    for name, keep in shrunk.items():
        wider = keep.clone()
        gone = (~keep).nonzero().flatten()
        wider[gone[scores(look)[name][gone].argsort(descending=True)][:allocation.multiple]] = True
        assert int(keep.sum()) % allocation.multiple == 0 and times({**plan, name: wider}) > budget
    assert shrunk


def test_a_pass_is_listed_as_it_runs(look, asked):
    """With the shapes of the net that is really cut, in its order."""
    plan = {g.name: torch.arange(g.size) < 24 for g in look.groups}
    x, smaller = batch(look, 2), remove(look.net, plan).eval()
    with torch.inference_mode(), timing.Listing({}) as real:
        smaller(x)
    assert Times(look.net, x).operations(plan) == real.operations


def test_what_is_known_is_not_measured_again(look, asked, capsys):
    """Another criterion, another process, a run that begins again: the same plan, from the table."""
    first = Latency(time=0.5)(scores(look), look)
    passes = len(asked)
    again = Latency(time=0.5)(scores(look), look)
    assert len(asked) == passes and all(torch.equal(first[name], again[name]) for name in first)
    assert " 0 operations measured" in capsys.readouterr().out.splitlines()[-1]
    torch.set_num_threads((before := torch.get_num_threads()) + 1)
    Times(look.net, EXAMPLE)({})                                  # another setting, another table
    torch.set_num_threads(before)
    assert len(asked) == passes + 1


@pytest.mark.parametrize("damage", ["{", '{"facts": {"seconds": {}}, "sha256": "0"}', '{"seconds": {"a": "b"}}', "[1]"])
def test_a_damaged_table_is_measured_again(damage, look, asked, capsys):
    times = Times(look.net, EXAMPLE)
    times({})
    times.keep()
    assert timing.read(times.file) == times.known and capsys.readouterr().out == ""
    times.file.write_text(damage)
    again = Times(look.net, EXAMPLE)
    assert again({}) == times({}) and len(asked) == 2
    assert len(told := capsys.readouterr().out.splitlines()) == 1 and "cannot be read" in told[0]
    again.keep()
    assert timing.read(times.file) == again.known


def test_a_table_that_cannot_be_kept_ends_nothing(look, asked, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Latency(time=0.5)(scores(look), look) and "layer times are not kept" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "told"), [
    ({"time": 0.0}, "allocation.time is the fraction to keep"), ({"ms": -1.0}, "ms must be above 0"),
    ({"batch_size": 0}, "batch_size at least 1"), ({"spread": "even"}, "'even' is not known"),
    ({"time": 0.01}, r"a budget of .* ms cannot be met: .* of .* ms \(time=0\.\d+\)")])
def test_what_cannot_be_is_one_line(options, told, look, asked):
    with pytest.raises(UserError, match=told) as error:
        Latency(**options)(scores(look), look)
    assert "\n" not in str(error.value)


def test_half_the_time_in_one_call(look, asked):
    small = reprune.prune(look.net, EXAMPLE, time=0.5, groups="all", multiple=8)
    times = Times(look.net, EXAMPLE)
    assert times(reprune.plan(small)) <= 0.5 * times({})
    with pytest.raises(UserError, match="give one of macs, params and time"):
        reprune.prune(look.net, EXAMPLE, time=0.5, macs=0.5)


def test_a_net_that_needs_numbers_is_told(asked):
    class Hard(nn.Module):
        def forward(self, x):
            return x + float(x.mean())

    net = nn.Sequential(nn.Conv2d(3, 8, 3), Hard())
    with pytest.warns(UserWarning):
        reprune.trace(net, EXAMPLE)
    with pytest.raises(UserError, match="give a budget of MACs instead"):
        Times(net, EXAMPLE)({})


def test_a_run_on_a_real_clock(configure, tmp_path, monkeypatch, capsys):
    """Its numbers are whatever this machine takes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing, "REPEATS", 1)
    record = run(configure("method=l1", "method/allocation=latency", "method.allocation.time=0.9", "dataset=digits"))
    assert record["pruned"]["params"] < record["baseline"]["params"]
    assert record["config"]["method"]["allocation"]["batch_size"] == 4
    assert "ms promised" in capsys.readouterr().out
    (file,) = tmp_path.glob("reprune/latency-*.json")
    assert all(isinstance(found, float) for found in timing.read(file).values())
