r"""ThiNet: filters by what they add to the next layer.              Luo, Wu & Lin, ICCV 2017, arXiv:1707.06342

    T <- T + argmin_c || sum_{j in T + c} x_j ||^2        until as many are discarded as are to go        (1)
    w  = argmin || y - X_S w ||^2,    W_:j <- w_j W_:j    for j in S, the channels that stay              (2)

    x_j      what channel j adds to sampled outputs of the next layer, before the activation     [N]
    X, y     all of them; their sum over all channels, the outputs without the bias              [N, C], [N]
    W_:j     the weights of the next layer that read channel j                                   [n, k k]

A sample is an image, a random position and a random filter of the next layer. Only X^T X is kept, for (1) is
t^T X^T X t and (2) is X_S^T X_S w = X_S^T X 1: one pass, [C, C] whatever N is. The order of (1) is the score, as a
fraction of C, so that any allocation can say how many go; (2) is a repair. Layer by layer, with fine-tuning in between.

Needs: images.

Deviations: how long and at which rates is fine-tuned is not known, and the paper has no CIFAR rows: recipe luo2017 is a
reconstruction. Images are drawn from the whole training set, not so many of each class. Where a map has no more
positions than are asked for, each counts once. A channel that several layers read is discarded by the sum over them,
and each of them gets scales of its own; where a layer reads other channels beside, y is what those in question add.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.methods.output_error import OutputError, Reader, cut, dense, places, removal_order, weights
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Scores
from reprune.structure.groups import FilterGroup


def scales(gram: Tensor, keep: Tensor) -> Tensor:
    """w of eq. 2, the shortest where several are as good. gram: X^T X [C, C]; keep: bool [C] -> [kept]

    x_0 = (1, 0), x_1 = (0, 1), x_2 = (2, 0): without x_2, y = (3, 1) is 3 x_0 + x_1.

    >>> x = torch.tensor([[1., 0., 2.], [0., 1., 0.]])
    >>> scales(x.T @ x, torch.tensor([True, True, False]))
    tensor([3., 1.])
    """
    target = gram.sum(1)[keep]
    return torch.linalg.lstsq(gram[keep][:, keep], target.unsqueeze(1), driver="gelsd").solution.squeeze(1)


class _Pairs(Reader):
    """Collects X^T X."""

    def take(self, x: Tensor) -> None:
        weight = weights(self.module, self.where)                 # [n, C, k]
        drawn = torch.randint(len(weight), (len(x),), generator=self.generator)
        added = (x.view(len(x), *weight.shape[1:]) * weight[drawn.to(weight.device)]).sum(2).double()      # [N, C]
        self.gram, self.rows = self.gram + added.T @ added, self.rows + len(x)

    def matrix(self) -> Tensor:
        return (self.gram / self.rows).cpu()


class ThiNet(OutputError):
    """When eq. 1 discards a channel, from 0 (at first) up to 1.

    n_samples    training images
    points       random pairs of a position and a filter of the next layer, for each of them (0 = all positions)
    """

    reader = _Pairs

    def __init__(self, n_samples: int = 1000, points: int = 10):
        super().__init__(n_samples, points)

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        return {name: self._turns(q) for name, q in self.matrices(list(groups), probe).items()}

    @staticmethod
    def _turns(q: Tensor) -> Tensor:
        if not q.isfinite().all():
            return torch.full((len(q),), torch.nan)
        return removal_order(q, len(q)).argsort() / len(q)


class Rescale:
    """A repair: eq. 2 in the layers that read the filters that are left.

    error    the criterion that has measured them
    """

    def __init__(self, error: ThiNet):
        if not isinstance(error, ThiNet):
            raise UserError(f"repair.error must be a reprune.methods.thinet.ThiNet, got {type(error).__name__}")
        self.error = error

    @torch.no_grad()
    def __call__(self, net: nn.Module, probe: Probe) -> nn.Module:
        plan, groups = cut(net, probe)
        forms = self.error.forms(groups, probe)
        for group in groups:
            keep = plan[group.name]
            for s in (s for s in dense(group, probe.net) if s.module in forms[group.name]):
                weight, at = net.get_submodule(s.module).weight, places(s, keep, plan, probe.net)          # [kept, k]
                factor = scales(forms[group.name][s.module], keep).to(weight).repeat_interleave(at.shape[1])
                weight[:, at.flatten()] *= factor.view(-1, *[1] * (weight.dim() - 2))
        return net
