"""ga: the quadratic form is the layer error, the genetic algorithm finds its optimum, the real net decides."""

import random
from dataclasses import replace
from itertools import combinations, pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from nets import build
from torch import Tensor, nn

import reprune
from reprune import models
from reprune.errors import UserError
from reprune.methods import ga
from reprune.methods.ga import Genetic, OutputError, greedy, quadratic
from reprune.pipeline import allocate, prune, run
from reprune.probe import Probe, evaluate
from reprune.suffix import Suffix

EXACT = 1e-9                            # relative, in float64


class Fixed:
    """Images in memory, drawn as the datasets draw them; all of them are for training."""

    def __init__(self, x: Tensor, y: Tensor | None = None):
        self.x, self.y = x, torch.zeros(len(x), dtype=torch.long) if y is None else y
        self.parts = SimpleNamespace(train=torch.arange(len(x)))

    def plain(self, batch_size, seed, n=None, device="cpu"):
        rows = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))[:n]
        return list(zip(self.x[rows].split(batch_size), self.y[rows].split(batch_size), strict=True))


def look(net: nn.Module, x: Tensor, y: Tensor | None = None, **options) -> Probe:
    return Probe(net.eval(), x[:1], Fixed(x, y), batch_size=3, **options)


def images(n=8, channels=3, size=9, dtype=torch.float64) -> Tensor:
    return torch.randn(n, channels, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def masks(size: int, n: int, seed: int = 0) -> Tensor:
    """Random sets of removed filters, the single ones among them; never all. bool [n + size, size]"""
    gone = torch.rand(n, size, generator=torch.Generator().manual_seed(seed)) < 0.5
    gone[:, seed % size] = False
    return torch.cat([torch.eye(size, dtype=torch.bool), gone])


def random_q(c: int, seed: int, rank: int | None = None) -> Tensor:
    """A correlated quadratic form, as the inputs of a layer give one."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(rank or c + 5, c, generator=generator, dtype=torch.float64) + 0.5
    rows *= torch.rand(c, generator=generator, dtype=torch.float64)
    return rows.T @ rows / len(rows)


def subsets(c: int, removals: int) -> Tensor:
    """Every set of `removals` of c channels, float64 [sets, c], 1 = removed."""
    some = torch.tensor(list(combinations(range(c), removals)))
    return torch.zeros(len(some), c, dtype=torch.float64).scatter_(1, some, 1)


def error_of(keep: Tensor, q: Tensor) -> Tensor:
    return quadratic((~keep).to(q), q)


def search(**options) -> Genetic:
    return Genetic(error=OutputError(), **options)


# the quadratic form


def reading(reader: nn.Module, inner: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, inner, 3, padding=1), nn.BatchNorm2d(inner), nn.ReLU(), reader,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


READERS = {
    "3x3": lambda: nn.Conv2d(6, 4, 3, bias=False),
    "1x1": lambda: nn.Conv2d(6, 4, 1),
    "zeros around": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "stride": lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1),
    "1x1, stride": lambda: nn.Conv2d(6, 4, 1, stride=2),
    "dilation": lambda: nn.Conv2d(6, 4, 3, dilation=2, padding=1),
    "same": lambda: nn.Conv2d(6, 4, (2, 3), dilation=(1, 2), padding="same"),
    "reflect": lambda: nn.Conv2d(6, 4, 3, padding=(2, 1), padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), padding_mode="circular"),
    "replicate": lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), stride=2, padding_mode="replicate"),
    "rectangular": lambda: nn.Conv2d(6, 4, (1, 5), stride=(3, 2), padding=(0, 2), dilation=(2, 1)),
}


class Branches(nn.Module):
    """Two layers read the stem, one of them twice per filter; the first also reaches the end by itself."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3, stride=2), nn.Conv2d(10, 3, 1)
        self.fc = nn.Linear(7, 3)

    def forward(self, x):
        h = torch.relu(self.stem(x))
        return self.fc(torch.cat([self.a(h).mean((2, 3)), self.b(torch.cat([h, 2 * h], 1)).mean((2, 3))], 1))


def flat() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 3 * 3, 5))


NETS = {
    **{name: (lambda make=make: reading(make()), "0", ["3"]) for name, make in READERS.items()},
    "linear behind a flatten": (flat, "0", ["4"]),
    "linear behind a linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(243, 6), nn.ReLU(), nn.Linear(6, 4)),
                               "1", ["3"]),
    "linear on every position": (lambda: nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4)), "0", ["2"]),
    "two readers": (Branches, "stem", ["a", "b"]),
}


def lively(net: nn.Module, x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):                    # a silent filter emits beta - gamma mu / sigma
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    net.double().train()(x)
    return net.eval()


def outputs(net: nn.Module, readers: list[str], x: Tensor) -> list[Tensor]:
    """What each reader says before its activation, [rows, n]."""
    seen = {}
    hooks = [net.get_submodule(r).register_forward_hook(lambda m, i, out, r=r: seen.update({r: out.clone()}))
             for r in readers]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return [seen[r].movedim(1, -1).flatten(0, -2) if seen[r].dim() == 4 and
            isinstance(net.get_submodule(r), nn.Conv2d) else seen[r].flatten(0, -2) for r in readers]


def brute_force(net: nn.Module, group: str, readers: list[str], x: Tensor, gone: Tensor) -> float:
    """||Z - Z_z||^2 / N, summed over the readers, on the net silenced by surgery."""
    whole, silent = outputs(net, readers, x), outputs(reprune.silence(net, {group: ~gone}), readers, x)
    return sum((a - b).pow(2).sum(1).mean().item() for a, b in zip(whole, silent, strict=True))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", NETS)
def test_the_quadratic_form_is_the_output_error_of_the_silenced_net(name):
    """All positions of all images, in batches of unequal size."""
    make, group, readers = NETS[name]
    x = images()
    net = lively(make(), x)
    probe = look(net, x)
    filters = next(g for g in probe.groups if g.name == group)
    q = OutputError(n_samples=len(x), points=0).matrices([filters], probe)[group]
    assert q.dtype == torch.float64 and q.shape == (filters.size, filters.size)
    for gone in masks(filters.size, 6):
        expected = brute_force(net, group, readers, x, gone)
        assert expected > 0
        assert quadratic(gone.to(q)[None], q).item() == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("name", ["cifar-resnet8", "mobilenet_v3_small", "squeezenet1_1"])
def test_channels_of_a_real_net_have_the_sum_of_the_errors_in_all_layers_that_read_them(name):
    """Trunks, squeeze-excite, concatenation: each layer run again on its own inputs with the channels zeroed."""
    net, x = build(name)
    probe = look(net, x)
    groups = [probe.groups[i] for i in {0, 1, 2, len(probe.groups) // 2, len(probe.groups) - 1}]
    found, inputs = OutputError(n_samples=4, points=0).matrices(groups, probe), {}
    for module in {s.module for g in groups for s in g.readers()}:
        net.get_submodule(module).register_forward_pre_hook(lambda m, args: inputs.update({m: args[0].clone()}))
    with torch.no_grad():
        net(x)
        for group in groups:
            gone, expected = torch.arange(group.size) % 3 == 1, 0
            for s in group.readers():
                layer = net.get_submodule(s.module)
                if getattr(layer, "groups", 1) > 1:               # depthwise: goes with the filters
                    continue
                h, dim = inputs[layer], 1 if isinstance(layer, nn.Conv2d) else -1
                change = layer(h) - layer(h.index_fill(dim, s.index[gone].flatten(), 0))
                expected += change.pow(2).sum(dim).mean().item()
            assert expected > 0
            q = found[group.name]
            assert quadratic(gone.to(q)[None], q).item() == pytest.approx(expected, rel=EXACT), group.name


def test_a_sampled_error_is_the_error_at_one_position():
    """One image, one point: one of the 3 x 3 errors that a pass over the whole map has, and each of them some time."""
    x = images(1)
    net = lively(reading(nn.Conv2d(6, 4, 3, stride=3)), images())
    gone = torch.tensor([True, False, True, True, False, False])
    reprune.trace(net, x)
    whole, silent = outputs(net, ["3"], x)[0], outputs(reprune.silence(net, {"0": ~gone}), ["3"], x)[0]
    at = (whole - silent).pow(2).sum(1)
    assert len(at) == 9
    hits, probe = set(), look(net, x)
    for seed in range(100):
        probe = look(net, x, seed=seed, original=probe.original)
        q = OutputError(n_samples=1, points=1).matrices(probe.groups[:1], probe)["0"]
        near = (at - quadratic(gone.to(q)[None], q)).abs()
        assert near.min() <= EXACT * at.max()
        hits.add(near.argmin().item())
    assert hits == set(range(9))


def test_sampled_forms_are_positive_semidefinite_and_their_mean_is_that_of_all_positions():
    x = images()
    net = lively(reading(nn.Conv2d(6, 4, 3, padding=1)), x)
    probe = look(net, x)
    full = OutputError(n_samples=8, points=0).matrices(probe.groups[:1], probe)["0"]
    drawn = []
    for seed in range(100):
        probe = look(net, x, seed=seed, original=probe.original)
        q = OutputError(n_samples=8, points=4).matrices(probe.groups[:1], probe)["0"]
        assert torch.allclose(q, q.T, rtol=1e-12) and (q.diagonal() >= 0).all()
        assert torch.linalg.eigvalsh(q).min() >= -EXACT * q.diagonal().max()
        drawn.append(q)
    drawn = torch.stack(drawn)
    away = (drawn.mean(0) - full).abs() / (drawn.std(0) / len(drawn) ** 0.5)
    assert away.max() < 4                                         # standard errors: no bias
    assert drawn.std(0).max() > 0.01 * full.max()                 # they did sample


def test_as_many_points_as_positions_are_all_positions():
    x = images()
    probe = look(lively(reading(nn.Conv2d(6, 4, 3)), x), x)
    q = [OutputError(n_samples=8, points=p).matrices(probe.groups[:1], probe)["0"] for p in (0, 49, 1000)]
    assert torch.equal(q[0], q[1]) and torch.equal(q[0], q[2])


def test_scores_are_the_errors_of_single_filters_and_other_settings_measure_anew():
    x = images()
    probe = look(lively(reading(nn.Conv2d(6, 4, 3)), x), x)
    few, many, sampled = OutputError(2, points=0), OutputError(8, points=0), OutputError(8, points=1)
    scores = few(probe.groups, probe)
    assert not torch.equal(many(probe.groups, probe)["0"], sampled(probe.groups, probe)["0"])
    for criterion, n in ((few, 2), (many, 8)):
        used = torch.cat([x for x, _ in probe.data.plain(3, probe.seed, n)])
        expected = [brute_force(probe.net, "0", ["3"], used, gone) for gone in torch.eye(6, dtype=torch.bool)]
        assert torch.allclose(criterion(probe.groups, probe)["0"], torch.tensor(expected), rtol=1e-5)
    assert scores["0"].dtype == torch.float32 and set(scores) == {g.name for g in probe.groups}


def test_layers_that_do_not_run_have_no_error():
    """The auxiliary heads of GoogLeNet exist in training mode only."""
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.aux, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 5, 1)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return (self.b(h), self.aux(h)) if self.training else self.b(h)

    x = images(4)
    net = Headed().double()
    probe = look(net, x)
    group = probe.groups[0]
    assert {s.module for s in group.readers()} == {"b", "aux"}
    q = OutputError(n_samples=4, points=0).matrices([group], probe)["a"]
    gone = torch.tensor([True, False, True, False])
    assert quadratic(gone.to(q)[None], q).item() == pytest.approx(brute_force(net, "a", ["b"], x, gone), rel=EXACT)


def test_measuring_leaves_the_net_and_the_global_random_state_alone():
    x = images()
    probe = look(lively(reading(nn.Conv2d(6, 4, 3)), x), x)
    probe.net.train()
    before, state = {k: v.clone() for k, v in probe.net.state_dict().items()}, torch.get_rng_state()
    OutputError(n_samples=8)(probe.groups, probe)
    assert torch.equal(torch.get_rng_state(), state) and probe.net.training
    assert all(torch.equal(v, before[k]) for k, v in probe.net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in probe.net.modules())


# refresh: which net is measured


def resnet8(size: int = 16, dtype=torch.float32, n: int = 24) -> Probe:
    """Labels are what the net says, so that its filters matter."""
    torch.manual_seed(0)
    net = models.build({"_target_": "reprune.models.resnet", "depth": 8, "in_channels": 1}).to(dtype).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = images(n, 1, size, dtype)
    with torch.no_grad():
        net(x)
        y = net.eval()(x).argmax(1)
    return look(net, x, y, seed=3)


def inner(probe: Probe) -> list:
    return [g for g in probe.groups if not g.coupled]


@pytest.mark.parametrize("refresh", [True, False])
def test_without_refresh_only_the_net_before_the_first_round_is_measured(refresh):
    first = resnet8()
    criterion = OutputError(n_samples=24, points=0, refresh=refresh)
    before = criterion(inner(first), first)
    keep = torch.arange(16) >= 8
    later = look(reprune.remove(first.net, {"layer1.0.conv1": keep}), first.data.x, seed=3, original=first.original)
    now = criterion(inner(later)[1:], later)
    passes = []
    later.net.register_forward_pre_hook(lambda *_: passes.append(1))
    again = criterion(inner(later)[1:], later)
    assert not passes and all(torch.equal(again[n], now[n]) for n in now)       # asked twice, measured once
    fresh = look(later.net, first.data.x, seed=3)
    expected = before if not refresh else OutputError(n_samples=24, points=0)(inner(fresh), fresh)
    for name in now:
        assert torch.equal(now[name], expected[name])
    assert not torch.allclose(before["layer3.0.conv1"], OutputError(24, 0)(inner(fresh), fresh)["layer3.0.conv1"])


def test_a_net_cut_while_the_allocation_searches_is_measured_itself():
    """As greedy allocation does it: the same probe with another net. What was found out about the first stays there."""
    first, criterion = resnet8(), OutputError(n_samples=24, points=0)
    before = criterion(inner(first), first)
    now = replace(first, net=reprune.remove(first.net, {"layer1.0.conv1": torch.arange(16) >= 8}))
    fresh = look(now.net, first.data.x, seed=3)
    found, expected = criterion(inner(now), now), criterion(inner(fresh), fresh)
    assert all(torch.equal(found[n], expected[n]) for n in found)
    assert not torch.equal(before["layer3.0.conv1"], found["layer3.0.conv1"])


# the genetic algorithm


@pytest.mark.parametrize("c", [2, 5, 8, 10])
@pytest.mark.parametrize("rank", [3, None])
def test_the_optimum_of_a_small_layer_is_found(c, rank):
    for seed, removals in product(range(4), sorted({1, c // 2, c - 1})):
        q = random_q(c, seed, rank)
        keep = search().evolve(q, removals, seed)
        best = quadratic(subsets(c, removals), q).min()
        assert error_of(keep, q)[0] <= best + EXACT * q.diagonal().max()


def test_the_last_generation_comes_without_twins_and_smallest_error_first():
    q = random_q(10, 0)
    keep = search().evolve(q, 4, 0)
    errors = error_of(keep, q)
    assert 1 < len(keep) == len(keep.unique(dim=0)) <= 40
    assert torch.equal(errors, errors.sort().values) and keep.dtype == torch.bool


def test_permuting_the_channels_permutes_the_optimum():
    for seed in range(4):
        q, order = random_q(9, seed), torch.randperm(9, generator=torch.Generator().manual_seed(seed))
        one, two = (search().evolve(m, 4, 7)[0] for m in (q, q[order][:, order]))
        assert torch.equal(one[order], two)                       # one optimum here, in another place


@pytest.mark.parametrize("options", [{}, {"elitism": 1, "population": 7}, {"crossover": 0.0, "mutation": 0.5},
                                     {"seed_greedy": True, "elitism": 0}, {"mutation": 0.0, "tournament": 1}])
def test_every_generation_removes_exactly_so_many(options, monkeypatch):
    seen, evaluate_all = [], ga._Selection._evaluate
    monkeypatch.setattr(ga._Selection, "_evaluate",
                        lambda self, x, out, *a, **k: (seen.append(x.copy()), evaluate_all(self, x, out, *a, **k)))
    for removals in (1, 5, 11):
        seen.clear()
        settings = search(generations=15, patience=15, **options)
        settings.evolve(random_q(12, 0), removals, 0)
        assert len(seen) == 15
        assert [len(x) for x in seen] == [settings.population] + [settings.population - settings.elitism] * 14
        assert all(((~x).sum(1) == removals).all() for x in seen)
        assert len(np.unique(seen[0], axis=0)) > 1                # repair does not make them all the same


def test_the_best_is_never_lost_and_patience_stops():
    q = random_q(24, 0)
    best = [error_of(search(generations=n, patience=60).evolve(q, 12, 5), q)[0].item() for n in (1, 2, 4, 8, 16, 60)]
    assert best == sorted(best, reverse=True) and best[-1] < 0.9 * best[0]
    generations = []
    flat_q = torch.eye(6, dtype=torch.float64)                    # every choice is as good: no improvement ever
    with pytest.MonkeyPatch.context() as patch:
        run_one = ga._Selection._evaluate
        patch.setattr(ga._Selection, "_evaluate", lambda *a, **k: (generations.append(1), run_one(*a, **k)))
        search(patience=4).evolve(flat_q, 3, 0)
    assert len(generations) == 1 + 4


@pytest.mark.parametrize("mu", [0.1, 1.0, 100.0])
def test_a_penalty_instead_of_the_exact_count_ends_near_it(mu):
    for seed, removals in product(range(3), (2, 5)):
        q = random_q(9, seed)
        unit = mu * q.diagonal().mean()
        every = torch.tensor(list(product([0.0, 1.0], repeat=9))[:-1], dtype=torch.float64)    # but not all removed
        best = (quadratic(every, q) + unit * (every.sum(1) - removals) ** 2).min()
        keep = search(cardinality="penalty", mu=mu).evolve(q, removals, seed)[0]
        off = (~keep).sum() - removals
        assert error_of(keep[None], q)[0] + unit * off**2 <= best + EXACT * q.diagonal().max()
        assert off == 0 or mu < 100


def test_a_penalty_never_removes_everything_although_that_would_cost_nothing():
    """Outputs that see only differences between channels: without all of them nothing changes."""
    q = torch.eye(6, dtype=torch.float64) - 1 / 6
    assert quadratic(torch.ones(1, 6, dtype=torch.float64), q).abs() < 1e-12
    for mu in (0.0, 0.01):
        keep = search(cardinality="penalty", mu=mu).evolve(q, 5, 0)
        assert keep.any(1).all() and (~keep).any()


def states() -> tuple:
    return random.getstate(), tuple(map(repr, np.random.get_state())), torch.get_rng_state().tolist()  # noqa: NPY002


@pytest.mark.parametrize("cardinality", ["exact", "penalty"])
def test_the_seed_alone_decides_and_the_global_random_state_is_not_touched(cardinality):
    q, found = random_q(30, 0), []
    for disturbance in (1, 2):
        random.seed(disturbance)
        np.random.seed(disturbance)  # noqa: NPY002
        torch.manual_seed(disturbance)
        before = states()
        found.append(search(generations=3, cardinality=cardinality).evolve(q, 12, 5))
        assert states() == before
    assert torch.equal(*found)
    assert not torch.equal(found[0], search(generations=3, cardinality=cardinality).evolve(q, 12, 6))


def test_seeded_with_the_greedy_solution_it_is_never_worse_than_greedy():
    better = 0
    for seed, removals in product(range(6), (5, 15, 25)):
        q = random_q(30, seed, rank=12)
        reached, start = error_of(greedy(q, removals)[None], q), search(seed_greedy=True, generations=20)
        assert (~greedy(q, removals)).sum() == removals
        found = error_of(start.evolve(q, removals, seed), q)[0]
        assert found <= reached * (1 + 1e-12)
        better += bool(found < 0.999 * reached)
    assert better                                                 # greedy is not the optimum: this says something


def test_greedy_is_the_literal_greedy():
    for seed in range(20):
        q, gone = random_q(8, seed, rank=4), []
        for _ in range(5):
            trials = {j: quadratic(F.one_hot(torch.tensor([*gone, j]), 8).sum(0)[None].to(q), q).item()
                      for j in range(8) if j not in gone}
            gone.append(min(trials, key=trials.get))
        assert (~greedy(q, 5)).nonzero().flatten().tolist() == sorted(gone)


def test_the_search_needs_no_image_once_the_errors_are_measured():
    """So a generation takes no longer with more calibration images: Q has the size of the layer and nothing else."""
    sizes = set()
    for n in (2, 24):
        probe, genetic = resnet8(), Genetic(error=OutputError(n_samples=n), finalists=1, generations=5)
        plan = {g.name: torch.arange(g.size) >= 3 for g in inner(probe)}
        sizes |= {tuple(q.shape) for q in genetic.error.matrices(inner(probe), probe).values()}
        probe.data, passes = None, []
        probe.net.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        assert set(genetic(plan, probe)) == set(plan) and not passes
    assert sizes == {(16, 16), (32, 32), (64, 64)}


# the search on a net


def planned(probe: Probe, share: float = 0.4) -> dict[str, Tensor]:
    """A plan with a count of its own for every inner group, and one group that keeps all."""
    plan = {g.name: torch.arange(g.size) >= int(g.size * share) + i for i, g in enumerate(inner(probe))}
    return {**plan, "layer2.0.conv1": torch.ones(32, dtype=torch.bool)}


def test_the_plan_keeps_its_counts_and_groups_that_lose_nothing_are_left_alone(monkeypatch):
    probe, evolved, evolve = resnet8(), [], Genetic.evolve
    monkeypatch.setattr(Genetic, "evolve", lambda self, q, *a: evolved.append(len(q)) or evolve(self, q, *a))
    plan = planned(probe)
    better = Genetic(error=OutputError(24), generations=10)(plan, probe)
    assert list(better) == list(plan) and evolved == [16, 64]
    assert {n: int(k.sum()) for n, k in better.items()} == {n: int(k.sum()) for n, k in plan.items()}
    assert any(not torch.equal(better[n], plan[n]) for n in plan)
    assert better["layer2.0.conv1"].all()
    reprune.remove(probe.net, better)


def test_the_finalist_with_the_smallest_loss_of_the_real_net_is_chosen(monkeypatch):
    probe, finalists, evolve = resnet8(), [], Genetic.evolve
    monkeypatch.setattr(Genetic, "evolve", lambda *a: finalists.append(evolve(*a)) or finalists[-1])
    plan = planned(probe)
    better = Genetic(error=OutputError(24), generations=4, n_final=20, images=9)(plan, probe)
    drawn, firsts = probe.data.plain(9, probe.seed + 1, 20), []
    names = [n for n in plan if not plan[n].all()]
    for name, last in zip(names, finalists, strict=True):
        assert len(last) > 5
        loss = [evaluate(reprune.silence(probe.net, {name: keep}), drawn)[0] for keep in last[:5]]
        assert torch.equal(better[name], last[loss.index(min(loss))]), name
        firsts.append(loss.index(min(loss)) == 0)
    assert not all(firsts)                                        # the real net did change its mind


def test_a_single_finalist_is_the_one_with_the_smallest_error():
    x = images()
    net = lively(reading(nn.Conv2d(6, 4, 3)), x)
    probe, criterion = look(net, x), OutputError(n_samples=8, points=0)
    plan = {"0": torch.arange(6) >= 3, "3": torch.arange(4) >= 1}
    chosen = Genetic(error=criterion, finalists=1)(plan, probe)
    for name, q in criterion.matrices(probe.groups[:2], probe).items():
        every = subsets(len(q), int((~plan[name]).sum()))
        assert torch.equal(~chosen[name], every[quadratic(every, q).argmin()].bool()), name


def test_the_same_probe_gives_the_same_choice_and_another_seed_may_not():
    plans = []
    for seed in (3, 3, 4):
        probe = resnet8()
        probe.seed = seed
        plans.append(Genetic(error=OutputError(24), generations=1, finalists=1)(planned(probe), probe))
    assert all(torch.equal(plans[0][n], plans[1][n]) for n in plans[0])
    assert not all(torch.equal(plans[0][n], plans[2][n]) for n in plans[0])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: OutputError(n_samples=0), ["n_samples", "0"]),
    (lambda: OutputError(points=-1), ["points", "-1"]),
    (lambda: Genetic(error=None), ["search.error", "OutputError", "NoneType"]),
    (lambda: search(cardinality="about"), ["cardinality", "about", "exact", "penalty"]),
    (lambda: search(crossover=1.5), ["search.crossover", "1.5"]),
    (lambda: search(crossover=None), ["search.crossover", "None"]),
    (lambda: search(mutation=-0.1), ["search.mutation", "-0.1"]),
    (lambda: search(mu=-1.0), ["search.mu", "-1.0"]),
    (lambda: search(population=3), ["population=3", "elitism=2"]),
    (lambda: search(elitism=-1), ["elitism=-1"]),
    (lambda: search(population=10, tournament=11), ["tournament=11"]),
    *[(lambda name=name: search(**{name: 0}), [f"search.{name}", "0"])
      for name in ("generations", "patience", "tournament", "finalists", "n_final", "images")],
])
def test_a_bad_argument_gives_one_line_that_names_it(make, words):
    with pytest.raises(UserError) as caught:
        make()
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


# the suffix: sets of silenced filters


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


# layer by layer


def pruned_by(record: dict) -> int:
    return sum(before - after for before, after in record["widths"].values())


@pytest.mark.parametrize("spread", ["uniform", "global"])
def test_layer_by_layer_spends_a_budget_that_is_decided_once_on_the_unpruned_net(spread, configure, monkeypatch):
    budget = ["method=l1", "method/allocation=macs", "method.allocation.macs=0.6", f"method.allocation.spread={spread}",
              "method.allocation.normalize=max"]
    shot = run(configure(*budget))
    decided, nets, biases, ask = [], [], [], reprune.allocation.Budget.__call__
    monkeypatch.setattr(reprune.allocation.Budget, "__call__", lambda self, s, p: decided.append(p) or ask(self, s, p))

    def spy(method, probe, counts=None):
        nets.append((probe.cost({}).macs, counts))
        biases.append(probe.net.linear.bias.detach().clone())
        return allocate(method, probe, counts)

    monkeypatch.setattr("reprune.pipeline.allocate", spy)
    record = run(configure(*budget, "method/rounds=layer_by_layer", "method.rounds.layers=2"))
    assert record["pruned"]["macs"] <= 0.6 * record["baseline"]["macs"]
    assert record["widths"] == shot["widths"] and pruned_by(record) > 0
    assert len(decided) == 1 and nets[0] == (record["baseline"]["macs"], None)
    macs, counts = zip(*nets[1:], strict=True)
    assert macs[0] == nets[0][0] and list(macs) == sorted(set(macs), reverse=True)      # scored on the net as it is
    assert not any(torch.equal(a, b) for a, b in pairwise(biases[1:]))                  # and has recovered
    assert all(len(c) == 2 for c in counts[:-1]) and 1 <= len(counts[-1]) <= 2
    assert record["epochs"]["recover"] == len(counts) > 1
    names = [n for c in counts for n in c]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("choice", [["method=l1"], ["method=ga", "method/allocation=uniform"]])
def test_layer_by_layer_with_a_plan_that_removes_nothing_says_so(choice, configure):
    with pytest.raises(UserError, match="would remove no filter"):
        run(configure(*choice, "method/rounds=layer_by_layer", "method.allocation.rate=0.01"))


def test_the_search_takes_the_place_of_the_lowest_scores_in_every_round(configure):
    """ga with a criterion of its own for the counts: what goes is what the genetic algorithm says."""
    probe = resnet8()
    method = instantiate(configure("method=ga", "method/allocation=uniform", "method.criterion.n_samples=24",
                                   "method.search.generations=10").method)
    plan = allocate(method, probe, {"layer1.0.conv1": 8})
    turn = SimpleNamespace(counts={"layer1.0.conv1": 8})
    smaller, chosen = prune(method, turn, probe), method.search(plan, probe)["layer1.0.conv1"]
    assert torch.equal(smaller.layer1[0].conv1.weight, probe.net.layer1[0].conv1.weight[chosen])
    assert chosen.sum() == 8 and not torch.equal(chosen, plan["layer1.0.conv1"])
