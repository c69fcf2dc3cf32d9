r"""LASSO channel selection and least squares.                    He, Zhang & Sun, ICCV 2017, arXiv:1707.06168

    beta = argmin || Y - sum_i beta_i X_i W_i^T ||^2 / 2M  +  alpha || beta ||_1                     (1)
    W    = argmin || Y - sum_i X_i W_i^T - b ||^2            over the i with beta_i != 0              (2)

    X_i      inputs from channel i at N sampled positions of the next layer, in the net as it is by then     [N, k k]
    W_i      what the next layer does with them                                                               [n, k k]
    Y        its outputs there in the ORIGINAL net, without the bias: errors do not add up from layer to layer [N, n]
    beta     one number per channel                                                                               [c]
    b        an intercept: the bias is that of the original layer and b                                           [n]

For a rank (the channels that are to stay) alpha starts at 1e-3 and is doubled until fewer are not zero, then bisected
until at least `rank` and at most (1 + rank_tol) rank are. (1) on M = rows n numbers, min(400, N // 20) random rows; (2)
on all N. Of these only moments are kept, X^T X and X^T Y: one pass, whatever N is, and (1) needs no more than
A = Z^T Z [c, c] and Z^T Y [c] with Z = [X_1 W_1^T, ...]. Where batch norm follows, and no bias, its mean moves by b.

Layer by layer, in order of execution and with nothing trained in between; then the net is fine-tuned. A score is the
alpha at which a channel enters the path of (1), so that any allocation can say how many stay.

Needs: images.

Deviations: rates and schedule on CIFAR are a reconstruction (recipe he2017). Each layer's search for alpha starts at
1e-3, not where the one before it ended: a run that is cut off goes on as if it was not. Where no alpha gives so many
channels (two enter at once, or too few ever do), the largest |beta| stay. A channel that several layers read has one
beta for all of them. Where a layer reads other channels beside, what they add now is no part of Y. Inputs of a residual
block that several layers share are pruned as a group or not at all: there is no sampler in front of a branch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, lars_path_gram
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.methods.moments import Moments, bias_of, survivors
from reprune.methods.output_error import check_read, cut, dense, error_matrix, put, watch
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup, Plan, Slice

START, BISECTIONS = 1e-3, 60


def normal(x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """A = Z^T Z and Z^T Y of eq. 1, each divided by M, with an intercept. x [rows, c k], y [rows, n], w [n, c, k] ->
    [c, c], [c]

    >>> x, w = torch.tensor([[1., 0.], [3., 2.]]), torch.tensor([[[1.], [2.]]])      # Z = (1, 0), (3, 4): means 2, 2
    >>> normal(x, torch.tensor([[0.], [2.]]), w)
    (tensor([[1., 2.],
            [2., 4.]]), tensor([1., 2.]))
    """
    n, c, k = w.shape
    mean = (x.mean(0).view(c, k) * w.mean(0)).sum(1)              # of each column of Z
    cross = ((y.T @ x).view(n, c, k) * w).sum((0, 2))
    m = len(x) * n
    return error_matrix(x.T @ x, w) / m - torch.outer(mean, mean), cross / m - mean * y.mean()


def select(a: Tensor, b: Tensor, rank: int, tolerance: float, seed: int) -> Tensor:
    """Eq. 1 for a rank. a [c, c], b [c] -> bool [c], True = stays"""
    values, vectors = torch.linalg.eigh(a)
    some = values >= values.max() * len(a) * torch.finfo(a.dtype).eps            # one at least
    root = values[some].sqrt() * some.sum() ** 0.5                # a = z^T z / rows
    z = (root.unsqueeze(1) * vectors[:, some].T).numpy()
    y = (some.sum() * (vectors[:, some].T @ b) / root.clamp_min(torch.finfo(a.dtype).tiny)).numpy()
    solver = Lasso(fit_intercept=False, warm_start=True, selection="random", random_state=seed % 2**32)

    def chosen(alpha: float) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)   # what is counted are those that are not zero
            return torch.from_numpy(solver.set_params(alpha=alpha).fit(z, y).coef_.copy())

    low, high = 0.0, START
    while chosen(high).count_nonzero() >= rank:
        high *= 2
    enough, most = torch.zeros_like(b), min(rank + int(tolerance * rank + 1e-9), len(a) - 1)
    for _ in range(BISECTIONS):
        beta, middle = chosen((low + high) / 2), (low + high) / 2
        count = int(beta.count_nonzero())
        if rank <= count <= most:
            return beta != 0
        enough = beta if count > enough.count_nonzero().clamp_max(rank) else enough
        low, high = (middle, high) if count > most else (low, middle)
    best = sorted(range(len(a)), key=lambda i: (abs(float(enough[i])), float(a[i, i])), reverse=True)
    return torch.zeros(len(a), dtype=torch.bool).index_fill_(0, torch.tensor(best[:rank]), True)


def entries(a: Tensor, b: Tensor) -> Tensor:
    """The largest alpha at which each channel is not zero. a [c, c], b [c] -> [c]

    >>> entries(torch.eye(3), torch.tensor([0.5, -2., 0.]))       # beta = b shrunk by alpha
    tensor([0.5000, 2.0000, 0.0000])
    """
    found = torch.zeros(len(a), dtype=a.dtype)
    alive = a.diagonal() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)       # channels that say the same: one of them enters
        alphas, _, path = lars_path_gram(b[alive].numpy(), a[alive][:, alive].numpy(), n_samples=1, method="lasso")
    steps = torch.from_numpy(path != 0).int()                     # [alive, steps]; not zero from the step after it
    first = (steps.argmax(1) - 1).clamp_min(0)
    found[alive] = torch.where(steps.any(1), torch.from_numpy(alphas.copy()).to(a)[first], 0)
    return found


def refit(gram: Tensor, cross: Tensor, columns: Tensor, intercept: bool) -> tuple[Tensor, Tensor]:
    """Eq. 2 from moments. gram: [X 1]^T [X 1] [p + 1, p + 1]; cross: [X 1]^T Y [p + 1, n]; columns: of X, those
    that stay, int64 [q] -> W^T [q, n], b [n]

    One input 1, 2, 3 and y = 2 x + 1:

    >>> x, y = torch.tensor([[1., 1.], [2., 1.], [3., 1.]]).double(), torch.tensor([[3.], [5.], [7.]]).double()
    >>> [round(v.item(), 9) for v in refit(x.T @ x, x.T @ y, torch.tensor([0]), intercept=True)]
    [2.0, 1.0]
    """
    g, c, rows = gram[columns][:, columns], cross[columns], gram[-1, -1]
    if not intercept:
        return torch.linalg.lstsq(g, c, driver="gelsy").solution, cross.new_zeros(cross.shape[1])
    mean, target = gram[-1, columns] / rows, cross[-1] / rows
    w = torch.linalg.lstsq(g - rows * torch.outer(mean, mean), c - rows * torch.outer(mean, target),
                           driver="gelsy").solution
    return w, target - mean @ w


class Channels(Criterion):
    """The alpha at which a channel enters the path of eq. 1.

    n_samples    training images
    points       random positions of each
    rows         of eq. 1, at most, and of all N at most a twentieth
    original     Y of the net before the first round; false: of this one
    """

    def __init__(self, n_samples: int = 5000, points: int = 10, rows: int = 400, original: bool = True):
        if min(n_samples, points, rows) < 1:
            raise UserError("criterion: n_samples, points and rows must be at least 1, got "
                            f"{n_samples}, {points}, {rows}")
        self.n_samples, self.points, self.rows, self.original = n_samples, points, rows, original

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        check_read(type(self).__name__, groups, probe.net)

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        groups = list(groups)
        problems = {g.name: self.problem(g.name, groups, probe) for g in groups}
        return {name: entries(a, b) if a.isfinite().all() and b.isfinite().all() else torch.full_like(b, torch.nan)
                for name, (a, b) in problems.items()}

    def problem(self, name: str, groups: list[FilterGroup], probe: Probe) -> tuple[Tensor, Tensor]:
        """Eq. 1 of a group, over all layers that read it."""
        size = next(g.size for g in groups if g.name == name)
        a, b = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for m in (m for m in self.measure(groups, probe)[name] if m.rows):       # an auxiliary head may not have run
            more = normal(*m.some(), m.weights())
            a, b = a + more[0], b + more[1]
        return a, b

    @torch.no_grad()
    def measure(self, groups: list[FilterGroup], probe: Probe) -> dict[str, list[Moments]]:
        """Those of each group, in every layer that reads it."""
        memo = probe.memo.setdefault(("lasso", self.n_samples, self.points, self.rows, self.original), {})
        if missing := [g for g in groups if g.name not in memo]:
            memo |= self._measure(missing, probe)
        return memo

    def _measure(self, groups: list[FilterGroup], probe: Probe) -> dict[str, list[Moments]]:
        then, generator = self.target(probe), probe.generator()
        n = min(self.n_samples, len(probe.data.parts.train))
        found, hooks = {}, []
        for g in groups:
            found[g.name] = []
            for s in dense(g, probe.net):
                left = survivors(probe, then, s.module)
                each = Moments(probe.net.get_submodule(s.module), s, self.points, generator, n, self.rows, left)
                hooks += [then.get_submodule(s.module).register_forward_hook(each.aim),       # before the next one
                          each.module.register_forward_hook(each)]
                found[g.name].append(each)
        watch([then, probe.net] if then is not probe.net else [then], hooks, self.n_samples, probe)
        return found

    def target(self, probe: Probe) -> nn.Module:
        return probe.original.net if self.original else probe.net


class Select:
    """A search: eq. 1 for as many channels of each group as the plan keeps, or up to rank_tol more.

    error    the criterion that has measured them
    """

    def __init__(self, error: Channels, rank_tol: float = 0.1):
        _measures("search", error)
        if rank_tol < 0:
            raise UserError(f"search.rank_tol must be at least 0, got {rank_tol}")
        self.error, self.rank_tol = error, rank_tol

    def __call__(self, plan: Plan, probe: Probe) -> Plan:
        groups = [g for g in probe.groups if g.name in plan and not plan[g.name].all()]
        return {**plan, **{g.name: select(*self.error.problem(g.name, groups, probe), int(plan[g.name].sum()),
                                          self.rank_tol, probe.seed) for g in groups}}


class Refit:
    """A repair: eq. 2 in the layers that read the filters that are left.

    error        the criterion that has measured them
    intercept    with b, where the layer has a bias or batch norm behind it
    """

    def __init__(self, error: Channels, intercept: bool = True):
        _measures("repair", error)
        self.error, self.intercept = error, intercept

    @torch.no_grad()
    def __call__(self, net: nn.Module, probe: Probe) -> nn.Module:
        plan, groups = cut(net, probe)
        found = self.error.measure(groups, probe)
        for group in groups:
            for moments in (m for m in found[group.name] if m.rows):
                self.fit(net, moments, plan, plan[group.name], probe)
        return net

    def fit(self, net: nn.Module, moments: Moments, plan: Plan, keep: Tensor, probe: Probe) -> None:
        where: Slice = moments.where
        then = self.error.target(probe)
        new, old = bias_of(net, where.module), bias_of(then, where.module)
        block = (len(moments.gram) - 1) // len(keep)              # weights that read one filter
        columns = torch.arange(block * len(keep)).view(len(keep), block)[keep].flatten()
        w, b = refit(*moments.sums(), columns, self.intercept and new is not None)
        out = put(w.T, where, plan, keep, net, probe.net)
        if self.intercept and new is not None:
            (tensor, sign), (before, _) = new, old
            tensor.copy_(before[moments.left][out.to(before.device)] + sign * b[out].to(before))


def _measures(socket: str, error: Criterion) -> None:
    if not isinstance(error, Channels):
        raise UserError(f"{socket}.error must be a reprune.methods.lasso.Channels, got {type(error).__name__}")
