r"""Divnet: a diverse set of neurons stays, the others are fused into it.      Mariet & Sra, ICLR 2016, arXiv:1511.05077

    L_ij = exp( -beta || v_i - v_j ||^2 / m )  +  1e-6 [i = j]                                    (1)
    P(S) = det L_S / e_k(lambda)      for the sets S of k neurons                                 (2)    the k-DPP
    W~   = argmin || V_S W~ - V W ||_F^2  =  W_S + pinv(V_S) V_R W_R                              (3)    fusing

    v_i, V   activations of neuron i at N samples, of all, behind the nonlinearity          [N], [N, c]
    m        median of the squared distances between two neurons
    lambda, e_k    eigenvalues of L; their elementary symmetric polynomial of degree k
    S, R     the neurons that stay, those that go
    W        outgoing weights: row i is what the next layers do with neuron i; of a conv each place of the kernel is
             fused alike                                                                    [c, n k k]

Alike neurons are unlikely to stay together. The score of a neuron is its marginal probability in the DPP of L, the
diagonal of L (L + I)^-1; the search draws as many as the allocation says from (2), or takes the likeliest set greedily.

Needs: images.

Deviations: a reconstruction. Known are a DPP over the neurons of a layer and fusing by new outgoing weights; kernel,
beta, the number of samples, (3) for convs, the ridge of 1e-6 in its pseudo-inverse and fine-tuning after it are ours. A
sample is an image and a place of the map that the next layer reads. What several layers read at several places has the
sum of their distances, and is fused in each of them by what it reads. The sampler is our own, with e_k in logarithms:
that of DPPy 0.3.3 is exact too, but loses its polynomials where a thousand channels, or many dead ones, are drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.methods.output_error import Reader, check_read, cut, put, read, weights
from reprune.pruning.allocation import choice
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup, Plan, Slice

RIDGE = 1e-6


def kernel(gram: Tensor, beta: float = 1.0) -> Tensor:
    """Eq. 1 from the dot products of activations. gram: V^T V [c, c] -> L [c, c]

    Squared distances 1, 4 and 1, of median 1:

    >>> v = torch.tensor([[0., 1., 2.]])
    >>> kernel(v.T @ v)
    tensor([[1.0000, 0.3679, 0.0183],
            [0.3679, 1.0000, 0.3679],
            [0.0183, 0.3679, 1.0000]])
    """
    own = gram.diagonal()
    distance = (own.unsqueeze(1) + own - 2 * gram).clamp_min(0).fill_diagonal_(0)
    some = distance[tuple(torch.triu_indices(*distance.shape, 1))]
    middle = some.median() if len(some) and some.median() > 0 else distance.max().clamp_min(1e-30)    # many are alike
    return (-beta * distance / middle).exp() + RIDGE * torch.eye(len(gram), dtype=gram.dtype)


def chain(matrix: Tensor, k: int, pick: Callable[[Tensor], int]) -> Tensor:
    """k indices one by one: pick(left) chooses, left = what of each diagonal entry those before do not explain; with
    det = product of `left` at those that are chosen. matrix [c, c] -> int64 [k]

    >>> twins = torch.tensor([[1., .99, .1], [.99, 1., .1], [.1, .1, .9]])
    >>> chain(twins, 2, lambda left: int(left.argmax()))          # the likeliest pair, greedily
    tensor([0, 2])
    """
    left, rows, chosen = matrix.diagonal().clone(), matrix.new_zeros(len(matrix), k), torch.empty(k, dtype=torch.long)
    for j in range(k):
        chosen[j] = i = pick(left)
        rows[:, j] = (matrix[:, i] - rows[:, :j] @ rows[i, :j]) / left[i].clamp_min(1e-30).sqrt()
        left = (left - rows[:, j].square()).clamp_min(1e-30)      # rounding: who has not been chosen still can be
        left[chosen[: j + 1]] = 0
    return chosen


def elementary(values: Tensor, k: int) -> Tensor:
    """log e_j of the first n eigenvalues. values [c] -> [c + 1, k + 1], row n, column j

    >>> elementary(torch.tensor([1., 2., 3.]), 2).exp().round()[-1]       # 1; 1 + 2 + 3; 1 2 + 1 3 + 2 3
    tensor([ 1.,  6., 11.])
    """
    table = values.new_full((len(values) + 1, k + 1), -torch.inf)
    table[:, 0] = 0
    for n, log in enumerate(values.clamp_min(1e-300).log().tolist()):
        table[n + 1, 1:] = torch.logaddexp(table[n, 1:], log + table[n, :-1])
    return table


def draw(matrix: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """A set of eq. 2: k eigenvectors by their eigenvalues, then one neuron after the other of the projection on them.
    matrix: L, float64 [c, c] -> int64 [k]

    >>> _ = draw(torch.eye(5).double(), 5, torch.Generator()).sort().values.tolist()
    >>> _ == [0, 1, 2, 3, 4]
    True
    """
    values, vectors = torch.linalg.eigh(matrix)
    table, left, some = elementary(values, k), k, torch.zeros(len(values), dtype=torch.bool)
    chance = torch.rand(len(values), generator=generator, dtype=torch.float64).log()
    for n in range(len(values), 0, -1):
        if left and chance[n - 1] < values[n - 1].clamp_min(1e-300).log() + table[n - 1, left - 1] - table[n, left]:
            some[n - 1], left = True, left - 1
    vectors = vectors[:, some]
    return chain(vectors @ vectors.T, k, lambda p: int(torch.multinomial(p, 1, generator=generator)))


def fused(gram: Tensor, keep: Tensor, w: Tensor) -> Tensor:
    """Eq. 3. gram: V^T V [c, c], keep: bool [c], w [n, c, k] -> [n, kept, k]

    Neuron 1 is twice neuron 0, of which is read 1 and 3: then neuron 0 is read 1 + 2 * 3 times.

    >>> v, w = torch.tensor([[1., 2.], [2., 4.]]).double(), torch.tensor([[[1.], [3.]]]).double()
    >>> fused(v.T @ v, torch.tensor([True, False]), w).round(decimals=4)
    tensor([[[7.]]], dtype=torch.float64)
    """
    own, ridge = gram[keep][:, keep], RIDGE * gram.diagonal().mean().clamp_min(1e-30)
    m = torch.linalg.solve(own + ridge * torch.eye(len(own), dtype=gram.dtype), gram[keep][:, ~keep])    # [kept, gone]
    return w[:, keep] + torch.einsum("sr,nrk->nsk", m, w[:, ~keep])


class _Activations(Reader):
    """V^T V of what a layer reads: a sample is a place of its input."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        x, index = inputs[0], self.where.index.to(inputs[0].device)             # [c, k]
        if isinstance(module, nn.Linear):
            x = x[..., index].flatten(0, -3)                      # [N, c, k]
        else:
            x = x.flatten(2)                                      # [B, C, positions]
            if 0 < self.points < x.shape[2]:
                at = self.draw(len(x), x.shape[2]).to(x.device).unsqueeze(1)
                x = x.gather(2, at.expand(-1, x.shape[1], -1))
            x = x[:, index].flatten(2)                            # [B, c, k positions]
        self.take(x.transpose(1, 2).flatten(0, 1).double())

    def matrix(self) -> Tensor:
        return (self.gram / self.rows).cpu()


class Diversity(Criterion):
    """The marginal probability of each neuron in the DPP of eq. 1.

    n_samples    training images
    points       random places of each map (0 = all)
    beta         of the kernel
    """

    def __init__(self, n_samples: int = 1000, points: int = 5, beta: float = 1.0):
        if n_samples < 1 or points < 0 or beta <= 0:
            raise UserError("criterion: n_samples must be at least 1, points at least 0, beta above 0, got "
                            f"{n_samples}, {points}, {beta}")
        self.n_samples, self.points, self.beta = n_samples, points, beta

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        check_read(type(self).__name__, groups, probe.net)

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        return {name: self.marginals(self.kernel(found)) for name, found in self.measure(list(groups), probe).items()}

    @staticmethod
    def marginals(matrix: Tensor) -> Tensor:
        if not matrix.isfinite().all():
            return torch.full((len(matrix),), torch.nan)
        return torch.linalg.solve(matrix + torch.eye(len(matrix), dtype=matrix.dtype), matrix).diagonal()

    def kernel(self, found: list[tuple[Slice, Tensor]]) -> Tensor:
        return kernel(sum(gram for _, gram in found), self.beta)

    @torch.no_grad()
    def measure(self, groups: list[FilterGroup], probe: Probe) -> dict[str, list[tuple[Slice, Tensor]]]:
        """Of each group, in every layer that reads it and has run: where, V^T V / N"""
        memo = probe.memo.setdefault(("divnet", self.n_samples, self.points), {})
        if missing := [g for g in groups if g.name not in memo]:
            memo |= {name: [(r.where, r.matrix()) for r in some]
                     for name, some in read(missing, probe, _Activations, self.points, self.n_samples).items()}
        return {g.name: memo[g.name] for g in groups}


class KDPP:
    """A search: of each group, a set of as many filters as the plan keeps.

    error    the criterion that has measured them
    mode     "sample": drawn from eq. 2 | "map": each next filter is the one that makes the set likeliest
    """

    def __init__(self, error: Diversity, mode: str = "sample"):
        _measures("search", error)
        choice("search.mode", mode, ("sample", "map"))
        self.error, self.mode = error, mode

    def __call__(self, plan: Plan, probe: Probe) -> Plan:
        generator, found = probe.generator(), dict(plan)
        groups = [g for g in probe.groups if g.name in plan and not plan[g.name].all()]
        for name, layers in self.error.measure(groups, probe).items():
            matrix, k = self.error.kernel(layers), int(plan[name].sum())
            some = draw(matrix, k, generator) if self.mode == "sample" else \
                chain(matrix, k, lambda left: int(left.argmax()))
            found[name] = torch.zeros(len(matrix), dtype=torch.bool).index_fill_(0, some, True)
        return found


class Fuse:
    """A repair: eq. 3 in the layers that read the filters that are left.

    error    the criterion that has measured them
    """

    def __init__(self, error: Diversity):
        _measures("repair", error)
        self.error = error

    @torch.no_grad()
    def __call__(self, net: nn.Module, probe: Probe) -> nn.Module:
        plan, groups = cut(net, probe)
        for name, layers in self.error.measure(groups, probe).items():
            for where, gram in layers:
                w = weights(probe.net.get_submodule(where.module), where).cpu().double()
                put(fused(gram, plan[name], w).flatten(1), where, plan, plan[name], net, probe.net)
        return net


def _measures(socket: str, error: Criterion) -> None:
    if not isinstance(error, Diversity):
        raise UserError(f"{socket}.error must be a reprune.methods.divnet.Diversity, got {type(error).__name__}")
