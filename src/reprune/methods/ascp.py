r"""ASCP: clusters of filters are made one filter each, while the net trains.        Niu et al. 2022, arXiv:2206.08186

    p_t      = P (1 - exp(-kappa t / T)) / (1 - exp(-kappa))          after epoch t of T                  (1)
    G_1 .. G_K    k-means of w_1 .. w_N,   K = N - floor(p_t N)                                           (2)
    w_i     <- mean_{j in G} w_j      for every i in G, and so its batch norm                             (3)
    W[:, r] <- sum_{c in G} W[:, c]   of the next layers, where r alone stays of G                        (4)

    w_i      filter i of a layer, flattened                                       [c_in k k]
    P        the fraction of filters that goes in the end

After (3) all filters go on training, each on its own, until they are clustered again. The clusters of epoch T stay
until the end: (3) follows every step, which for SGD is one gradient for all of them. Then (4) removes the copies, and
exactly so, because channels with the same filter and the same batch norm say the same.

Needs: training.

Deviations: a reconstruction. Known is the sequence: cluster, make alike, train, at a rate that rises by one of several
laws, and add channels at removal. k-means, distances, (1) and its rivals, how batch norm takes part and the schedule
are ours, each a knob; a bound on the size of a cluster is not offered. Epochs: T is a share of those of the sparse
stage. Widths that an addition couples are clustered by the filters of all their layers, if at all.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.methods.output_error import cut, dense, put, weights
from reprune.pruning.allocation import choice
from reprune.pruning.during import During
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Allocation, Criterion
from reprune.structure.groups import FilterGroup

DECAYS = {
    "exp": lambda x, kappa: math.expm1(-kappa * x) / math.expm1(-kappa),
    "linear": lambda x, kappa: x,
    "cosine": lambda x, kappa: (1 - math.cos(math.pi * x)) / 2,
    "step": lambda x, kappa: math.floor(4 * x + 1e-9) / 4,
}
RESTARTS, ITERATIONS = 10, 50


def cluster(w: Tensor, k: int, seed: int, before: Tensor | None = None) -> Tensor:
    """Eq. 2: the best of ten k-means, and of one from the k largest of the clusters before. w [N, d] -> int64 [N]

    >>> labels = cluster(torch.tensor([[0.], [5.], [.1], [5.1], [9.]]), 3, seed=0)
    >>> [int(i) for i in (labels == labels[0]).nonzero()], [int(i) for i in (labels == labels[1]).nonzero()]
    ([0, 2], [1, 3])
    """
    x = torch.linalg.qr(w.double().cpu().T, mode="r").R.T.contiguous()          # the same distances in fewer numbers
    starts: list[dict] = [{"init": "k-means++", "n_init": RESTARTS}]
    if before is not None:
        members = F.one_hot(before).double()                      # [N, clusters]
        largest = members.sum(0).argsort(descending=True, stable=True)[:k]
        if len(largest) == k:
            starts.append({"init": ((members.T @ x) / members.sum(0).unsqueeze(1))[largest].numpy(), "n_init": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)       # fewer filters differ than there are clusters
        found = [KMeans(k, max_iter=ITERATIONS, random_state=seed % 2**32, **start).fit(x.numpy()) for start in starts]
    return torch.from_numpy(min(found, key=lambda each: each.inertia_).labels_).long()


def averaged(values: Tensor, labels: Tensor, unit_norm: bool = False) -> Tensor:
    """Eq. 3: every row becomes the mean of its cluster; unit_norm: the mean direction, of the mean length. [N, ...]

    >>> averaged(torch.tensor([[1., 0.], [9., 9.], [3., 2.]]), torch.tensor([0, 1, 0]))
    tensor([[2., 1.],
            [9., 9.],
            [2., 1.]])
    >>> averaged(torch.tensor([[1., 0.], [0., 3.]]), torch.tensor([0, 0]), unit_norm=True)        # length 2, half-way
    tensor([[1.4142, 1.4142],
            [1.4142, 1.4142]])
    """
    members = F.one_hot(labels).to(values.device, torch.float64)  # [N, clusters]

    def means(rows: Tensor) -> Tensor:
        return (members.T @ rows) / members.sum(0).clamp_min(1).unsqueeze(1)

    rows = values.double().flatten(1)
    if unit_norm:
        found = means(rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30))
        found = found / found.norm(dim=1, keepdim=True).clamp_min(1e-30) * means(rows.norm(dim=1, keepdim=True))
    else:
        found = means(rows)
    return found[labels.to(values.device)].view_as(values).to(values)


@torch.no_grad()
def merge(net: nn.Module, group: FilterGroup, labels: Tensor, norms: bool = True, unit_norm: bool = False) -> None:
    """Eq. 3 in place, in all layers that make the channels of a group, and all they pass through."""
    producers = {s.module for s in group.producers(net)}
    for s in group.slices:
        if s.axis != "out" or not (norms or s.module in producers):
            continue
        module, index = net.get_submodule(s.module), s.index      # [N, k]
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor) and len(tensor) > int(index.max()):             # a PReLU may have one slope
                turn = unit_norm and name == "weight" and s.module in producers
                tensor[index] = averaged(tensor[index], labels, turn)


class Twins(Criterion):
    """How far the nearest other filter of the layer is. Of filters that are the same, all but the first have 0."""

    def score(self, group: FilterGroup, probe: Probe) -> Tensor:
        different, which = torch.cat(group.filters(probe.net), 1).double().unique(dim=0, return_inverse=True)
        distance = torch.cdist(different, different).fill_diagonal_(torch.inf).amin(1)
        distance = distance.masked_fill(distance.isinf(), 0)      # all are the same
        order = torch.arange(len(which), device=which.device)
        first = torch.full_like(which, len(which)).scatter_reduce_(0, which, order, "amin")[which]
        return torch.where(first == order, distance[which], 0)


class AddChannels:
    """A repair: eq. 4. A filter that has gone counts to the nearest one that stays: itself once more, if it was one of
    a cluster."""

    @torch.no_grad()
    def __call__(self, net: nn.Module, probe: Probe) -> nn.Module:
        plan, groups = cut(net, probe)
        for group in groups:
            w, keep = torch.cat(group.filters(probe.net), 1).double().cpu(), plan[group.name]
            to = torch.cdist(w[~keep], w[keep]).argmin(1)         # [gone]
            for s in dense(group, probe.net):
                read = weights(probe.net.get_submodule(s.module), s).cpu()             # [n, N, k]
                put(added(read, keep, to).flatten(1), s, plan, keep, net, probe.net)
        return net


def added(w: Tensor, keep: Tensor, to: Tensor) -> Tensor:
    """Eq. 4. w [n, N, k], keep: bool [N], to: where among the kept each of the others goes [gone] -> [n, kept, k]

    >>> added(torch.tensor([[[1.], [2.], [4.]]]), torch.tensor([True, False, True]), torch.tensor([1]))
    tensor([[[1.],
             [6.]]])
    """
    return w[:, keep].index_add(1, to, w[:, ~keep])


class Clusters(During):
    """Eq. 1 to 3 while the net trains.

    criterion    of the method: it finds the copies again
    allocation   of the method: how many filters go in the end, of each width
    decay        how the rate rises: "exp" (1) | "linear" | "cosine" | "step" (by quarters)
    kappa        of (1)
    rise         T, as a share of the epochs of the stage
    interval     epochs between two clusterings
    space        filters are compared as they are, "raw", or by direction, "unit_norm"
    bn           "average": batch norm takes part in (3) | "keep": it does not, and (4) is not exact
    """

    def __init__(self, criterion: Criterion, allocation: Allocation, decay: str = "exp", kappa: float = 5.0,
                 rise: float = 0.8, interval: int = 1, space: str = "raw", bn: str = "average"):
        choice("during.decay", decay, tuple(DECAYS))
        choice("during.space", space, ("raw", "unit_norm"))
        choice("during.bn", bn, ("average", "keep"))
        if kappa <= 0 or not 0 < rise <= 1 or interval < 1:
            raise UserError("during: kappa must be above 0, rise above 0 and at most 1, interval at least 1, got "
                            f"{kappa}, {rise}, {interval}")
        super().__init__()
        self.criterion, self.allocation = criterion, allocation
        self.decay, self.kappa, self.rise = decay, kappa, rise
        self.interval, self.unit_norm, self.norms = interval, space == "unit_norm", bn == "average"
        self.labels: dict[str, Tensor] = {}                       # group -> cluster of each filter

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        if not isinstance(self.criterion, Twins):
            raise UserError("method.during makes filters alike, which a method.criterion reprune.methods.ascp.Twins "
                            f"finds again, got {type(self.criterion).__name__} (method.during=null: none)")

    def share(self, t: int, end: int) -> float:
        """Eq. 1 without P."""
        return DECAYS[self.decay](t / end, self.kappa)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.end = max(1, int(self.rise * trainer.max_epochs + 1e-9))
        self.groups = {g.name: g for g in Probe(module.net, **self.view).groups}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if trainer.current_epoch >= self.end:
            self.merge(module.net)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        done = trainer.current_epoch + 1
        if done == self.end or done < self.end and done % self.interval == 0:
            self.cluster(Probe(module.net, **self.view, share=self.share(done, self.end), soft=True), done)
            self.merge(module.net)

    @torch.no_grad()
    def cluster(self, probe: Probe, epoch: int) -> None:
        groups = self.allocation.candidates(probe)
        plan = self.allocation(Twins().scores(groups, probe), probe)
        for g in (g for g in groups if g.name in plan and not plan[g.name].all()):
            w = torch.cat(g.filters(probe.net), 1)
            w = F.normalize(w, dim=1) if self.unit_norm else w
            self.labels[g.name] = cluster(w, int(plan[g.name].sum()), self.view["seed"] + epoch,
                                          self.labels.get(g.name))

    def merge(self, net: nn.Module) -> None:
        for name, labels in self.labels.items():
            merge(net, self.groups[name], labels, self.norms, self.unit_norm)

    def state_dict(self) -> dict:
        return {"labels": self.labels}

    def load_state_dict(self, state: dict) -> None:
        self.labels = state["labels"]
