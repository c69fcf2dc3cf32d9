r"""GA: channels chosen by a genetic algorithm, fine-tuning by distillation.       Hu et al. 2018, arXiv:1805.11394

    E(z) = || Z - Z_z ||^2 / N  =  (1 - z)^T Q (1 - z)                                              (1)
    Q_ij = sum_uv G_uv M_uv    u in block i, v in block j;    G = X^T X / N,   M = W^T W            (2)

    z        genes: 1 = keep, 0 = remove, one per input channel of a layer               [c]
    Z, Z_z   outputs of the layer before the activation, with all channels / with those of z       [N, n]
    X, W     its unfolded inputs at N sampled positions, and its weights                 [N, c k k], [n, c k k]
    Q        block i holds the k k columns of channel i; costs no pass over the data any more      [c, c]

Layer by layer: so many channels as the sensitivity of the layer allows; the genetic algorithm looks for the z of that
many zeros with the least (1), the first approximation of the loss; the few best of its last generation are tried on the
real net, the second; the net is fine-tuned by distillation from the unpruned one, and the next layer follows.

Needs: images; held-out images and their labels for the rates.

Deviations: a reconstruction. Known are the pipeline, Bernoulli genes, the error before the activation and the
distillation; the exact form (1), the operators, their rates and sizes, the sensitivity rule, the finalists and all
schedules are ours, each a knob. A channel that several layers read has the sum of their errors. The paper speaks of
the input channels of a layer; they are the filters of the layer before, which is how they are named here.

Here the search; (1), (2) and the measuring of Q are in output_error.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.core.survival import Survival
from pymoo.operators.crossover.ux import UX
from pymoo.operators.mutation.bitflip import BitflipMutation
from pymoo.operators.selection.tournament import TournamentSelection
from torch import Tensor

from reprune.errors import UserError
from reprune.methods.output_error import OutputError, error_matrix, quadratic, removal_order
from reprune.pruning.probe import Probe, eval_mode
from reprune.structure.groups import FilterGroup, Plan
from reprune.structure.suffix import Suffix

__all__ = ["Genetic", "OutputError", "error_matrix", "greedy", "quadratic"]


@dataclass(kw_only=True)
class Genetic:
    """For each group, the filters to remove: as many as the plan removes, with the least error (1).

    error                  the criterion that measures Q
    population, generations, patience    stops after `generations`, or after `patience` of them without improvement
    tournament             how many compete to be a parent
    crossover, mutation    probability of uniform crossover per pair, of a flip per gene (null = 1 / c)
    elitism                parents that survive into the next generation
    cardinality            "exact": chromosomes are repaired to the plan's count | "penalty": fitness + mu (count - K)^2
    mu                     in units of the mean Q_ii
    seed_greedy            put the greedy solution of (1) into the first population
    finalists              the best chromosomes of the last generation that are tried on the real net (1: none are)
    n_final                training images to try them on
    images                 at most so many of them at once: bounds the memory
    """

    error: OutputError
    population: int = 40
    generations: int = 100
    patience: int = 20
    tournament: int = 3
    crossover: float = 0.8
    mutation: float | None = None
    elitism: int = 2
    cardinality: str = "exact"
    mu: float = 1.0
    seed_greedy: bool = False
    finalists: int = 5
    n_final: int = 1000
    images: int = 250

    def __post_init__(self) -> None:
        if not isinstance(self.error, OutputError):
            raise UserError(f"search.error must be a reprune.methods.ga.OutputError, got {type(self.error).__name__}")
        if self.cardinality not in ("exact", "penalty"):
            raise UserError(f"search.cardinality: {self.cardinality!r} is not known, choose exact or penalty")
        for name in ("generations", "patience", "tournament", "finalists", "n_final", "images"):
            if getattr(self, name) < 1:
                raise UserError(f"search.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.elitism < self.population - 1 or self.tournament > self.population:
            raise UserError("search: population must be larger than elitism + 1 and at least tournament, got "
                            f"population={self.population}, elitism={self.elitism}, tournament={self.tournament}")
        for name, value in {"crossover": self.crossover, "mutation": self.mutation or 0}.items():
            if value is None or not 0 <= value <= 1:
                raise UserError(f"search.{name} is a probability, got {value}")
        if self.mu < 0:
            raise UserError(f"search.mu must be at least 0, got {self.mu}")

    def __call__(self, plan: Plan, probe: Probe) -> Plan:
        groups = [g for g in probe.groups if g.name in plan and not plan[g.name].all()]
        better = {}
        for group in groups:
            q = self.error.matrices(groups, probe)[group.name]
            removals = int((~plan[group.name]).sum())
            seed = np.random.SeedSequence([probe.seed, *group.name.encode()]).generate_state(1)[0]
            keep = self.evolve(q, removals, int(seed))            # [population, size], best first
            better[group.name] = self.final(group, keep[: self.finalists], probe)
        return {**plan, **better}

    def evolve(self, q: Tensor, removals: int, seed: int) -> Tensor:
        """The last generation, without twins, smallest error first. q [c, c] -> bool [distinct, c], True = keep"""
        random, c = np.random.default_rng(seed), len(q)
        exact, few = self.cardinality == "exact", (removals, removals) if self.cardinality == "exact" else (0, c - 1)
        first = random.random((self.population, c)) < 1 - removals / c
        if self.seed_greedy:
            first[0] = greedy(q, removals).numpy()
        problem = _Selection(q, removals, 0.0 if exact else self.mu * float(q.diagonal().mean()))
        search = GA(
            pop_size=self.population, n_offsprings=self.population - self.elitism,
            sampling=repair(first, *few, random), repair=_Repair(*few), survival=_Elite(self.elitism),
            selection=TournamentSelection(func_comp=_fittest, pressure=self.tournament),
            crossover=UX(prob=self.crossover), mutation=BitflipMutation(prob_var=self.mutation),
            eliminate_duplicates=False)
        search.setup(problem, termination=("n_gen", self.generations), seed=int(random.integers(2**31)))
        best, since = np.inf, 0
        while search.has_next() and since < self.patience:
            search.next()
            now = search.pop.get("F").min()
            best, since = (now, 0) if now < best else (best, since + 1)
        genes, error = search.pop.get("X"), search.pop.get("F")[:, 0]
        order = np.argsort(error, kind="stable")
        _, at = np.unique(genes[order], axis=0, return_index=True)
        return torch.from_numpy(genes[order][np.sort(at)])

    @torch.no_grad()
    def final(self, group: FilterGroup, keep: Tensor, probe: Probe) -> Tensor:
        """The finalist with the smallest cross-entropy of the whole net. keep: bool [finalists, size] -> bool [size]"""
        if len(keep) == 1:
            return keep[0]
        n, total = min(self.n_final, len(probe.data.parts.train)), 0.0
        with eval_mode(probe.net):
            drawn = probe.data.plain(self.images, probe.seed + 1, n, str(probe.example.device.type))
            for suffix in Suffix.over(probe.net, drawn, self.images):
                total = total + suffix.losses_without(group, ~keep) * len(suffix.y)
        return keep[total.argmin().item()]


def greedy(q: Tensor, removals: int) -> Tensor:
    """Removes the channel that adds least to (1), `removals` times. q [c, c] -> bool [c], True = keep

    >>> greedy(torch.tensor([[3., 0., -2.], [0., 4., 0.], [-2., 0., 4.]]), 2)         # 3; then 4 + 0 or 4 - 2 * 2
    tensor([False,  True, False])
    """
    keep = torch.ones(len(q), dtype=torch.bool)
    keep[removal_order(q, removals)] = False
    return keep


def repair(genes: np.ndarray, fewest: int, most: int, random: np.random.Generator) -> np.ndarray:
    """Flips random genes until between `fewest` and `most` of each row are False. bool [population, c]

    >>> repair(np.array([[True, True, True], [False, False, False]]), 1, 1, np.random.default_rng(0)).sum(1)
    array([2, 2])
    """
    zeros = (~genes).sum(1)
    order = (random.random(genes.shape) + genes).argsort(1).argsort(1)        # zeros first, in random order
    return order >= np.clip(zeros, fewest, most)[:, None]


class _Selection(Problem):
    """Error (1) of a population of keep vectors, plus mu (removed - removals)^2."""

    def __init__(self, q: Tensor, removals: int, mu: float):
        super().__init__(n_var=len(q), n_obj=1, xl=False, xu=True, vtype=bool)
        self.q, self.removals, self.mu = q, removals, mu

    def _evaluate(self, x: np.ndarray, out: dict, *args, **kwargs) -> None:
        removed = (~torch.from_numpy(x)).to(self.q)               # [population, c]
        error = quadratic(removed, self.q) + self.mu * (removed.sum(1) - self.removals) ** 2
        out["F"] = error.numpy()[:, None]


class _Repair(Repair):
    def __init__(self, fewest: int, most: int):
        super().__init__()
        self.fewest, self.most = fewest, most

    def _do(self, problem: Problem, x: np.ndarray, random_state: np.random.Generator, **kwargs) -> np.ndarray:
        return repair(x.astype(bool), self.fewest, self.most, random_state)


class _Elite(Survival):
    """The children, and the best `elite` of their parents."""

    def __init__(self, elite: int):
        super().__init__(filter_infeasible=False)
        self.elite = elite

    def _do(self, problem: Problem, pop, *args, n_survive: int, **kwargs):
        order = np.arange(len(pop))
        if len(pop) > n_survive:                                  # parents first
            best = pop[:n_survive].get("F")[:, 0].argsort(kind="stable")[: self.elite]
            order = np.concatenate([best, order[n_survive:]])
        return pop[order]


def _fittest(pop, rivals: np.ndarray, **kwargs) -> np.ndarray:
    """rivals [tournaments, pressure] -> index of the winner of each [tournaments, 1]"""
    return np.take_along_axis(rivals, pop.get("F")[rivals, 0].argmin(1)[:, None], 1)
