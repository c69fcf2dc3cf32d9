r"""Deep compression: prune, share weights, Huffman-code.       Han, Mao & Dally, ICLR 2016, arXiv:1510.00149

    prune     m = 1 where |w| is not among the smallest; the rest is trained on, with zeros that stay
    share     w <- c_k(w): k-means of a layer's weights, C_1 .. C_K of K = 2^b,
              argmin sum_k sum_{w in C_k} |w - c_k|^2                                                            (eq. 2)
              from K centroids that lie evenly between the least and the largest
    train     dL/dc_k = sum_{w in C_k} dL/dw                                                                     (eq. 3)
    code      methods/huffman.py: gaps and cluster indices, Huffman-coded, and the centroids

    w, m    a layer's weights and their mask
    b       8 in convs, 5 in linear layers

Needs: training.

Deviations: thresholds, the split of bits and all schedules are a reconstruction. Pruning and sharing are two parts of
one training, at the rate of the recipe; centroids learn at `centroid_rate` of it, as a sum of many gradients is large.
Each layer loses the same share of its weights, where the paper has a threshold per layer. Biases and batch norm are
neither pruned nor shared, and stand in the file as they are. Dense MACs do not fall.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.methods.huffman import Huffman
from reprune.pruning.allocation import choice
from reprune.pruning.masks import WeightMask, Weights, share, strongest
from reprune.pruning.probe import Probe

__all__ = ["Huffman", "Shared"]


def cluster(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Eq. 2. values [n] -> centroids [at most k], which of them each value has [n]

    >>> cluster(torch.tensor([0.0, 1.0, 9.0, 10.0]), 2)
    (tensor([0.5000, 9.5000]), tensor([0, 0, 1, 1]))
    """
    distinct = values.unique()
    if len(distinct) <= k:
        return distinct, torch.searchsorted(distinct, values)
    start = np.linspace(float(distinct[0]), float(distinct[-1]), k)[:, None]
    with threadpool_limits(limits=1):                             # sums of several threads come in any order
        found = KMeans(k, init=start, n_init=1, max_iter=50).fit(values.double().numpy()[:, None])
    centroids = torch.from_numpy(found.cluster_centers_[:, 0]).to(values)
    return centroids, torch.from_numpy(found.labels_).long()


def summed(gradient: Tensor, clusters: Tensor) -> Tensor:
    """Eq. 3: each weight has the gradient of its centroid. clusters: 0 where there is no weight

    >>> summed(torch.tensor([1., 2., 4., 8.]), torch.tensor([1, 2, 1, 0]))
    tensor([5., 2., 5., 0.])
    """
    flat = clusters.flatten()
    total = torch.zeros(int(flat.max()) + 1, dtype=gradient.dtype, device=gradient.device)
    total.index_add_(0, flat, gradient.flatten())
    total[0] = 0
    return total[flat].view_as(gradient)


class Shared(WeightMask):
    """rate: of weights that go; prune: layer | global: among whom they are the smallest, or std: all below `rate`
    standard deviations of their layer; conv, linear: b; share_from: part of the training after which they are shared.

    clusters   name -> 0 where a weight is zero, 1 .. K: its centroid; nothing before weights are shared
    """

    def __init__(self, rate: float = 0.9, prune: str = "layer", conv: int = 8, linear: int = 5,
                 share_from: float = 2 / 3, centroid_rate: float = 0.01, skip: Sequence[str] = ()):
        super().__init__(skip)
        choice("method.masks.prune", prune, ("layer", "global", "std"))
        if not (1 <= conv <= 16 and 1 <= linear <= 16 and 0 <= share_from <= 1 and centroid_rate >= 0):
            raise UserError("method.masks: conv and linear are 1 to 16 bits, share_from a part of the training and "
                            f"centroid_rate at least 0, got {conv}, {linear}, {share_from}, {centroid_rate}")
        self.rate = share("rate", rate) if prune != "std" else rate
        self.prune, self.bits, self.share_from = prune, {True: conv, False: linear}, share_from
        self.centroid_rate, self.clusters = centroid_rate, {}

    @torch.no_grad()
    def start(self, net: nn.Module, probe: Probe) -> None:
        size = {name: weight.detach().abs() for name, weight in self.weights(net).items()}
        if self.prune == "std":
            self.masks = {name: s >= self.rate * self.weights(net)[name].std() for name, s in size.items()}
        else:
            self.masks = strongest(size, self.rate, self.prune)
        self.apply(self.weights(net))
        self.update(self.weights(net), 0, 1)                      # without any training: share_from 0

    @torch.no_grad()
    def before_step(self, weights: Weights) -> None:
        for name, clusters in self.clusters.items():
            weights[name].grad.copy_(self.centroid_rate * summed(weights[name].grad, clusters))

    def update(self, weights: Weights, step: int, steps: int) -> None:
        if step >= self.share_from * steps and not self.clusters:
            self.clusters = {name: self.shared(name, weight) for name, weight in weights.items()}

    @torch.no_grad()
    def after_step(self, weights: Weights, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        were = bool(self.clusters)
        super().after_step(weights, optimizer, step, steps)
        if self.clusters and not were:                            # momentum is of weights that moved on their own
            for weight in weights.values():
                optimizer.state.pop(weight, None)

    def shared(self, name: str, weight: nn.Parameter) -> Tensor:
        """The clusters of a layer; its weights become their centroids."""
        mask = self.masks[name]
        clusters = torch.zeros(weight.shape, dtype=torch.long, device=weight.device)
        if mask.any():
            centroids, found = cluster(weight.detach()[mask].cpu(), 2 ** self.bits[weight.dim() > 2])
            clusters[mask] = found.to(weight.device) + 1
            weight[mask] = centroids[found].to(weight.device)
        return clusters

    @torch.no_grad()
    def apply(self, weights: Weights, optimizer: torch.optim.Optimizer | None = None) -> None:
        """All weights of a cluster are the same, to the last bit."""
        super().apply(weights, optimizer)
        for name, clusters in self.clusters.items():
            flat, one = clusters.flatten(), weights[name].new_zeros(int(clusters.max()) + 1)
            one.scatter_reduce_(0, flat, weights[name].flatten(), "amax", include_self=False)     # they are nearly so
            weights[name].copy_(one[flat].view_as(clusters))

    def state_dict(self) -> dict:
        return {**super().state_dict(), "clusters": self.clusters}
