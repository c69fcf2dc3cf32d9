r"""Iterative hard thresholding: skinny and dense phases in turn.      Jin, Yuan, Feng & Yan, 2016, arXiv:1607.05423

    (I)    w <- H_k(w): the k largest |w| stay, the rest is set to zero; only those k are trained, for s_1 epochs
    (II)   all w are trained, those that were zero from zero on, for s_2 epochs
    k      after round r of R:  (1 - q_r) n,  q_r = q (1 - (1 - r/R)^3);  round R is a last phase (I) of s_3 epochs

    n, q   weights of a layer, or of the net; `rate`: the share of them that goes in the end

Needs: training.

Deviations: known are the two phases, and that the net gets sparser from round to round. The lengths of the phases (10,
10 and 40 epochs), the sparsity of a round and what k is counted over are a reconstruction. Lengths are parts of the
training, however long the recipe says it is. Batch norm and biases are never thresholded. Dense MACs do not fall.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from reprune.errors import UserError
from reprune.pruning.allocation import choice
from reprune.pruning.masks import WeightMask, Weights, share, strongest
from reprune.pruning.probe import Probe


def phase(done: float, rounds: int, skinny: float, dense: float, last: float) -> tuple[int, bool]:
    """-> round 1 .. R, and whether it is in phase (I). done: part of the training that is over; skinny, dense, last:
    s_1, s_2, s_3, in any unit

    >>> [phase(done / 8, 3, 1, 1, 4) for done in range(6)]
    [(1, True), (1, False), (2, True), (2, False), (3, True), (3, True)]
    """
    before = (rounds - 1) * (skinny + dense)
    at = done * (before + last) + 1e-9
    if at >= before:
        return rounds, True
    number, place = divmod(at, skinny + dense)
    return int(number) + 1, place < skinny


def sparsity(rate: float, number: int, rounds: int) -> float:
    """q_r

    >>> [sparsity(0.8, r, 2) for r in (1, 2)]
    [0.7000000000000001, 0.8]
    """
    return rate * (1 - (1 - number / rounds) ** 3)


class Thresholding(WeightMask):
    """rate, rounds: q, R; scope: layer | global; skinny, dense, last: parts of the training, in any unit."""

    def __init__(self, rate: float = 0.75, rounds: int = 5, scope: str = "layer", skinny: float = 10, dense: float = 10,
                 last: float = 40, skip: Sequence[str] = ()):
        super().__init__(skip)
        choice("method.masks.scope", scope, ("layer", "global"))
        if rounds < 1 or min(skinny, dense) < 0 or skinny + dense <= 0 or last <= 0:
            raise UserError("method.masks: there is at least 1 round, and its phases have a length, got "
                            f"rounds={rounds}, skinny={skinny}, dense={dense}, last={last}")
        self.rate, self.rounds, self.scope = share("rate", rate), rounds, scope
        self.lengths = skinny, dense, last

    @torch.no_grad()
    def start(self, net: nn.Module, probe: Probe) -> None:
        self.threshold(self.weights(net), *phase(0, self.rounds, *self.lengths))
        self.apply(self.weights(net))

    def update(self, weights: Weights, step: int, steps: int) -> None:
        before, now = (phase(at / steps, self.rounds, *self.lengths) for at in (step - 1, step))
        if now != before:                                         # at the last step, if not before, to the last phase
            self.threshold(weights, *now)

    def threshold(self, weights: Weights, number: int, skinny: bool) -> None:
        """The masks of a phase."""
        rate = sparsity(self.rate, number, self.rounds) if skinny else 0.0
        self.masks = strongest({name: weight.detach().abs() for name, weight in weights.items()}, rate, self.scope)
