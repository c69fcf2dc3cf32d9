"""ga, second half: the genetic algorithm finds the optimum of the quadratic form, and the real net decides."""

import random
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ga_nets import (
    EXACT,
    error_of,
    images,
    inner,
    lively,
    look,
    random_q,
    reading,
    resnet8,
    search,
    subsets,
)
from torch import Tensor, nn

import reprune
from reprune.errors import UserError
from reprune.methods import ga
from reprune.methods.ga import Genetic, OutputError, greedy, quadratic
from reprune.pruning.probe import Probe, evaluate


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
