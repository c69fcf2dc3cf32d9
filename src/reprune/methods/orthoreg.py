r"""OrthoReg: filters made orthonormal, so that their importances add up.         Lubana et al. 2020, arXiv:2009.05014

    L   = CE + lambda sum_l w_l sum | W_l W_l^T - I |        entrywise; W_l^T W_l in the first conv and shortcuts    (1)
    w_l = r_l / sum r,   r_l = sqrt(n_l), or sqrt(min(n_l, d_l))                                                     (2)
    I_j = ( sum_theta theta g )^2                            theta over the weights of filter j                      (3)
    kept after round i of n:  n (1 - p) / ( i p + n (1 - p) )                                                        (4)

    W_l   filters of a conv, flattened, its biases as one more column     [n_l, d_l = c_in k k (+ 1)]
    g     gradient of the mean CE of some 10,000 training images, in eval mode
    p     fraction of the filters that goes; (4) is a rate of p / ( i p + n (1 - p) ) of what is left, in round i

Early-bird: 25 epochs from fresh weights with (1), all filters ranked together by (3) and cut at once, at most 95 % of a
layer; then the net is trained. Iterative (`rounds: iterative`): rounds by (4); after each but the last plain
training, then (1) for some epochs (`between_penalties`, from_epoch).

Needs: images, labels, gradients, training.

Deviations: shortcuts have the r_l of the first conv of their block, as in the authors' ResNet-34; MobileNet, of which
no weights are known, has sqrt(n_l). A depthwise conv has the importance of the conv before it. Filters that a residual
stage shares have the sum of (3) over its layers, and go together (a reconstruction), and the rate counts them once;
the first stage of a ResNet stays whole with the first conv. Weight decay stays on in the penalised epochs between
rounds (the authors: off); nets start from the last epoch, not from the best one on the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.pruning.rounds import Round
from reprune.pruning.sockets import Criterion, Scores, Step
from reprune.structure.groups import FilterGroup, Plan, Slice
from reprune.structure.modes import eval_mode

WEIGHTINGS = {"filters": lambda w: len(w) ** 0.5, "smaller": lambda w: min(w.shape) ** 0.5}
SHORTCUTS = (".downsample", ".shortcut")


def orthonormality(w: Tensor, transposed: bool = False) -> Tensor:
    """The inner sum of eq. 1. w: [n, d] -> scalar.

    >>> w = torch.tensor([[1., 1.], [0., 2.]])               # W W^T = 2 2 / 2 4;  W^T W = 1 1 / 1 5
    >>> orthonormality(w), orthonormality(w, transposed=True)
    (tensor(8.), tensor(6.))
    """
    w = w.T if transposed else w
    return (w @ w.T - torch.eye(len(w), dtype=w.dtype, device=w.device)).abs().sum()


def rows(conv: nn.Module) -> Tensor:
    """W_l. -> [n, d]"""
    w = conv.weight.flatten(1)
    return w if conv.bias is None else torch.cat([w, conv.bias.unsqueeze(1)], 1)


class Ortho:
    """The second term of eq. 1, over the convs of a net.

    weight        lambda >= 0
    weighting     r_l: "filters" sqrt(n_l) | "smaller" sqrt(min(n_l, d_l))
    transposed    "first": W^T W in the first conv and in shortcuts | "all": everywhere (the authors' MobileNet)
    from_epoch    0 before this epoch
    """

    def __init__(self, weight: float = 1e-2, weighting: str = "filters", transposed: str = "first",
                 from_epoch: int = 0):
        for name, value, allowed in (("weighting", weighting, WEIGHTINGS),
                                     ("transposed", transposed, ("first", "all"))):
            if value not in allowed:
                raise UserError(f"orthoreg: unknown {name} {value!r}; choose one of: {', '.join(allowed)}")
        if not 0 <= weight < float("inf"):
            raise UserError(f"orthoreg: weight (lambda) must be a number >= 0, got {weight}")
        self.weight, self.weighting, self.transposed, self.from_epoch = weight, weighting, transposed, from_epoch

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        self.layers(probe.net)

    def layers(self, net: nn.Module) -> dict[str, tuple[Tensor, bool, float]]:
        """conv -> W_l [n, d], whether it stands on its side, w_l"""
        found = {name: rows(m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
        if not found:
            raise UserError(f"orthoreg: {type(net).__name__} has no nn.Conv2d to make orthonormal")
        first, r = next(iter(found)), {name: WEIGHTINGS[self.weighting](w) for name, w in found.items()}
        shortcuts = {name: next(name.partition(word)[0] for word in SHORTCUTS if word in name)
                     for name in found if any(word in name for word in SHORTCUTS)}
        r |= {name: r.get(f"{block}.conv1", r[name]) for name, block in shortcuts.items()}
        return {name: (w, self.transposed == "all" or name == first or name in shortcuts, r[name] / sum(r.values()))
                for name, w in found.items()}

    def __call__(self, step: Step) -> Tensor:
        if self.from_epoch and step.epoch < self.from_epoch:
            return step.logits.new_zeros(())
        with torch.autocast(step.logits.device.type, enabled=False):        # W W^T - I is a small difference
            terms = [share * orthonormality(w, side) for w, side, share in self.layers(step.net).values()]
        return self.weight * torch.stack(terms).sum()


class Importance(Criterion):
    """Eq. 3.

    n_samples    training images (or all there are)
    """

    def __init__(self, n_samples: int = 10_000):
        if n_samples < 1:
            raise UserError(f"orthoreg: n_samples must be at least 1, got {n_samples}")
        self.n_samples = n_samples

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        groups = list(groups)
        makers = {g.name: dense(g.producers(probe.net), probe.net) for g in groups}
        layers = {s.module: probe.net.get_submodule(s.module) for each in makers.values() for s in each}
        tensors = [(name, t) for name, m in layers.items() for t in (m.weight, m.bias) if t is not None]
        total = [torch.zeros_like(t) for _, t in tensors]
        n = min(self.n_samples, len(probe.data.parts.train))
        with eval_mode(probe.net), torch.enable_grad():
            for x, y in probe.data.plain(probe.batch_size, probe.seed, n, str(probe.example.device.type)):
                loss = F.cross_entropy(probe.net(x), y, reduction="sum") / n
                found = torch.autograd.grad(loss, [t for _, t in tensors], materialize_grads=True)    # or not reached
                for whole, part in zip(total, found, strict=True):
                    whole += part
        sums: dict[str, Tensor | float] = dict.fromkeys(layers, 0.0)       # of theta g, per filter of the layer
        for (name, t), g in zip(tensors, total, strict=True):
            sums[name] = sums[name] + (t.detach() * g).flatten(1).sum(1) if t.dim() > 1 else sums[name] + t.detach() * g
        return {g.name: torch.stack([sums[s.module][s.index.to(sums[s.module].device)].sum(1).square()
                                     for s in makers[g.name]]).sum(0).float().cpu() for g in groups}


def dense(makers: Iterable[Slice], net: nn.Module) -> list[Slice]:
    """Of the layers that make the channels of a group, without depthwise convs, if any is left."""
    every = [*makers]
    return [s for s in every if getattr(net.get_submodule(s.module), "groups", 1) == 1] or every


@dataclass
class Iterative:
    """n rounds by eq. 4; `epochs` of recovery between them, the recipe's after the last.

    rate    p, as in the allocation

    >>> [round(turn.share, 4) for turn in Iterative(n=2, rate=0.5)(dict)]         # 1 / 1.5 of the half, then all
    [0.6667, 1.0]
    """

    n: int = 5
    rate: float = 0.5
    epochs: int = 1

    def __post_init__(self) -> None:
        if self.n < 1 or self.epochs < 0 or not 0 < self.rate < 1:
            raise UserError("rounds: n must be at least 1, epochs at least 0 and rate between 0 and 1, got "
                            f"n={self.n}, epochs={self.epochs}, rate={self.rate}")

    def __call__(self, plan: Callable[[], Plan]) -> Iterator[Round]:
        for i in range(1, self.n + 1):
            share = i / (i * self.rate + self.n * (1 - self.rate))
            yield Round(share=share, epochs=self.epochs if i < self.n else None)
