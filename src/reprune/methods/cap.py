r"""CaP: pruning with compensation, without any training.                       Xie et al. 2021, arXiv:2108.13728

    W'_S     = W Sigma_CS Sigma_SS^-1                                                                       (1)
    loss(S)  = tr( W Sigma W^T ) - tr( W Sigma_CS Sigma_SS^-1 Sigma_SC W^T )                                (2)
    score(t) = || ( W Sigma_CT - W Sigma_CS Sigma_SS^-1 Sigma_ST ) L^-T ||_F^2  =  loss(S) - loss(S + t)    (3)
               L L^T = Sigma_TT - Sigma_TS Sigma_SS^-1 Sigma_ST
    W'_n    <- W'_n sqrt( W_n Sigma W_n^T / W'_n Sigma_SS W'_n^T ),       b' = b + W mu - W'_S mu_S         (4)

    W, b     of a layer, before anything is removed                                                [n, d], [n]
    mu, Sigma    mean and covariance of its unfolded inputs, d = c k k; float64                    [d], [d, d]
    S, T, C  the d of the channels that stay, those of channel t, all of them

Forward selection: the channel of the largest (3) joins S, until none is left; pruned are the last of that order. What
stays is refitted by (1) and (4), in closed form. Layer by layer, a bisection finds the largest sparsity at which top-1
on held-out images stays above a threshold that falls a little with each layer (`allocation: bisection`). Statistics
and order are those of the unpruned net throughout.

Sigma_SS^-1 grows by one block a step. It is kept as the blocks P of a Cholesky factor, P P^T = Sigma_CS Sigma_SS^-1
Sigma_SC: the numbers are those of block inversion, and a step costs no more than one block of columns.

Needs: images; held-out images and their labels for the rates.

Deviations: trials, the highest sparsity, the drop that is allowed and the ridge on Sigma are a reconstruction. Widths
are pruned where no addition couples them: the authors drop inputs of any conv but the first. The shift of (4) goes to
the bias or to the mean of batch norm behind the layer; where there is neither, mu counts as zero. Channels that
several layers read have the sum of their (3); where a layer reads other channels beside, these stay as they are. A
covariance without a factor ends the run, where the authors leave that layer as it is; inputs of zero variance are
ranked last, not removed beside.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.methods.moments import bias_place, tensor_at
from reprune.methods.output_error import Reader, check_read, cut, put, read, weights
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup, Slice

TINY = 1e-20                            # in place of a variance that is not positive

Layer = tuple[Slice, Tensor, Tensor]
"""A layer that reads a group, and two tensors that belong to it."""


class Selection:
    """Forward selection in one layer: S is empty at first. sigma [d, d], w [n, d], d = c k

    >>> one = Selection(torch.diag(torch.tensor([1., 4., 9.])), torch.tensor([[3., 2., 1.]]), 3)
    >>> one.gains()                                               # nothing is correlated: w^2 times the variance
    tensor([ 9., 16.,  9.])
    """

    def __init__(self, sigma: Tensor, w: Tensor, channels: int):
        self.k, self.sigma, self.done = len(sigma) // channels, sigma, 0
        blocks = sigma.view(channels, self.k, channels, self.k).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        self.own = blocks.clone()                                 # L L^T of each channel [c, k, k]
        self.open = torch.ones(channels, dtype=torch.bool)
        self.panel = torch.empty_like(sigma)                      # P, as far as it is known [d, done]
        self.left = sigma @ w.T                                   # ( W Sigma - W P P^T )^T  [d, n]
        self.eye = torch.eye(self.k, dtype=sigma.dtype)

    def gains(self) -> Tensor:
        """Eq. 3, -inf for channels of S and for those without a factor L. -> [c]"""
        self.factor, failed = torch.linalg.cholesky_ex(self.own)
        inverse = torch.linalg.solve_triangular(self.factor, self.eye.expand_as(self.factor), upper=False)
        left = self.left.view(len(self.own), self.k, -1)          # [c, k, n]
        gains = ((inverse @ (left @ left.mT)) * inverse).sum((1, 2))
        return gains.masked_fill((failed != 0) | ~self.open | gains.isnan(), -torch.inf)

    def add(self, t: int) -> None:
        """Channel t joins S."""
        rows, k, known = slice(t * self.k, (t + 1) * self.k), self.k, self.panel[:, : self.done]
        column = self.sigma[:, rows] - known @ known[rows].T      # [d, k]
        p = torch.linalg.solve_triangular(self.factor[t], column.T, upper=False).T
        self.left -= p @ torch.linalg.solve_triangular(self.factor[t], self.left[rows], upper=False)
        self.own -= p.reshape(-1, k, k) @ p.reshape(-1, k, k).mT
        self.panel[:, self.done: self.done + k] = p
        self.done, self.open[t] = self.done + k, False


def forward_order(layers: list[Selection]) -> Tensor:
    """The channels in the order in which they join S; those that never can come last. -> int64 [c]

    Two channels say the same, the third little: one of the twins, the third, the other twin.

    >>> sigma = torch.tensor([[1., 1., 0.], [1., 1., 0.], [0., 0., 1.]])
    >>> forward_order([Selection(sigma, torch.tensor([[2., 1., 0.5]]), 3)])
    tensor([0, 2, 1])
    """
    order: list[int] = []
    open_ = layers[0].open
    while open_.any():
        gains = sum(layer.gains() for layer in layers)
        t = int(gains.argmax())
        if gains[t] == -torch.inf:
            break
        for layer in layers:
            layer.add(t)
        order.append(t)
    return torch.tensor([*order, *open_.nonzero().flatten().tolist()])


def compensate(sigma: Tensor, mu: Tensor, w: Tensor, columns: Tensor, rescale: bool = True) -> tuple[Tensor, Tensor]:
    """Eq. 1 and 4. sigma [d, d], mu [d], w [n, d], columns: S, int64 [q] -> W'_S [n, q], what b grows by [n]

    y = x_0 + x_1, where x_1 is x_0 again and both have the mean 3: without x_1, x_0 counts twice.

    >>> sigma, mu = torch.ones(2, 2), torch.full((2,), 3.)
    >>> compensate(sigma, mu, torch.ones(1, 2), torch.tensor([0]))
    (tensor([[2.]]), tensor([0.]))
    """
    own, cross = sigma[columns][:, columns], w @ sigma[:, columns]
    new = torch.cholesky_solve(cross.T, torch.linalg.cholesky(own)).T
    if rescale:
        before, after = ((w @ sigma) * w).sum(1), ((new @ own) * new).sum(1)
        scale = torch.where((before > 0) & (after > 0), before / after, 1).sqrt()
        new = new * scale.unsqueeze(1)
    return new, w @ mu - new @ mu[columns]


class _Statistics(Reader):
    """[X 1]^T [X 1] of what a layer reads."""

    def take(self, x: Tensor) -> None:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1).double()
        super().take(x)


class Ranking(Criterion):
    """When a channel joins S, from 0 (the last) up to 1.

    share     of the training images, for the statistics
    points    random positions of each (0 = all)
    eps       ridge on Sigma, times the mean of its diagonal
    centre    false: mu counts as zero, and Sigma are second moments
    """

    def __init__(self, share: float = 0.2, points: int = 0, eps: float = 1e-8, centre: bool = True):
        if not 0 < share <= 1 or points < 0 or eps < 0:
            raise UserError("criterion: share must be above 0 and at most 1, points and eps at least 0, got "
                            f"{share}, {points}, {eps}")
        self.share, self.points, self.eps, self.centre = share, points, eps, centre

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        check_read(type(self).__name__, groups, probe.net)

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        groups = list(groups)
        return {g.name: self._score(self.measure(groups, probe)[g.name], g, probe.net) for g in groups}

    def _score(self, layers: list[Layer], group: FilterGroup, net: nn.Module) -> Tensor:
        read = [(sigma, weights(net.get_submodule(s.module), s).flatten(1).cpu().double()) for s, sigma, _ in layers]
        if not all(part.isfinite().all() for pair in read for part in pair):
            return torch.full((group.size,), torch.nan)
        order = forward_order([Selection(sigma, w, group.size) for sigma, w in read])
        return (group.size - 1 - order.argsort()) / group.size

    @torch.no_grad()
    def measure(self, groups: list[FilterGroup], probe: Probe) -> dict[str, list[Layer]]:
        """Of each group, in every layer that reads it and has run: where, Sigma [d, d], mu [d]"""
        memo = probe.memo.setdefault(("cap", self.share, self.points, self.eps, self.centre), {})
        if missing := [g for g in groups if g.name not in memo]:
            n = max(1, int(self.share * len(probe.data.parts.train)))
            memo |= {name: [(r.where, *self.moments(r, probe.net)) for r in some]
                     for name, some in read(missing, probe, _Statistics, self.points, n).items()}
        return memo

    def moments(self, reader: Reader, net: nn.Module) -> tuple[Tensor, Tensor]:
        """Sigma and mu; mu is 0 where the layer has no place for a shift."""
        whole = (reader.gram / reader.rows).cpu()
        mu = whole[-1, :-1] * (self.centre and bias_place(net, reader.where.module) is not None)
        sigma = whole[:-1, :-1] - torch.outer(mu, mu)
        variance = sigma.diagonal()
        variance.copy_(torch.where(variance <= 0, TINY, variance))
        variance += self.eps * variance.mean()
        return sigma, mu


class Compensate:
    """A repair: eq. 1 and 4 in the layers that read the filters that are left.

    error      the criterion that has measured them
    rescale    to the variance that each output had (4): for convs with batch norm behind them; loss (2) grows a little
    """

    def __init__(self, error: Ranking, rescale: bool = True):
        if not isinstance(error, Ranking):
            raise UserError(f"repair.error must be a reprune.methods.cap.Ranking, got {type(error).__name__}")
        self.error, self.rescale = error, rescale

    @torch.no_grad()
    def __call__(self, net: nn.Module, probe: Probe) -> nn.Module:
        plan, groups = cut(net, probe)
        for group in groups:
            for where, w, shift in self.refitted(groups, group, plan[group.name], probe):
                out, place = put(w, where, plan, plan[group.name], net, probe.net), bias_place(probe.net, where.module)
                if place is not None:
                    tensor = tensor_at(net, place[0])
                    tensor += place[1] * shift[out].to(tensor)
        return net

    def refitted(self, groups: list[FilterGroup], group: FilterGroup, keep: Tensor,
                 probe: Probe) -> list[Layer]:
        """Of each layer: where, W'_S and the shift; the same plan of a group is asked for again and again."""
        memo = probe.memo.setdefault(("cap", "refitted", self.rescale), {})
        if group.name not in memo or not torch.equal(memo[group.name][0], keep):
            memo[group.name] = keep, [self.refit(*layer, keep, probe.net)
                                      for layer in self.error.measure(groups, probe)[group.name]]
        return memo[group.name][1]

    def refit(self, where: Slice, sigma: Tensor, mu: Tensor, keep: Tensor, net: nn.Module) -> Layer:
        columns = torch.arange(len(mu)).view(len(keep), -1)[keep].flatten()
        w = weights(net.get_submodule(where.module), where).flatten(1).cpu().double()
        try:
            return where, *compensate(sigma, mu, w, columns, self.rescale)
        except torch.linalg.LinAlgError:
            raise UserError(f"cap: the covariance of what {where.module} reads is not positive definite: raise "
                            "method.criterion.eps or method.criterion.share") from None
