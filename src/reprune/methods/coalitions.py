"""The game of `snpfi`: which coalitions are played, and what their values say of the players; eq. 1 to 3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def worth(logits: Tensor, y: Tensor, value: str = "log_p") -> Tensor:
    """Eq. 1 of each image, or log( p / (1 - p) ). logits [sets, B, classes], y [B] -> [sets, B]

    >>> logits = torch.tensor([[[0., 0., 0.], [0., 0., 5.]]])     # p = 1 / 3; odds of e^5 against 1 + 1
    >>> worth(logits, torch.tensor([0, 2])).exp(), worth(logits, torch.tensor([0, 2]), "log_odds").exp()
    (tensor([[0.3333, 0.9867]]), tensor([[ 0.5000, 74.2066]]))
    """
    own = y.expand(len(logits), -1).unsqueeze(2)
    others = logits if value == "log_p" else logits.scatter(2, own, -torch.inf)
    return logits.gather(2, own).squeeze(2) - others.logsumexp(2)


def orders(m: int, n: int, contexts: int, generator: torch.Generator) -> Tensor:
    """n random orders of the pairs of m players (an odd one is paired with player m), as many of the same pairs as
    `contexts` says before others are drawn. -> int64 [n, pairs, 2]"""
    players, found = m + m % 2, []
    for order in range(n):
        if order % contexts == 0:
            pairs = torch.randperm(players, generator=generator).view(-1, 2)
        found.append(pairs[torch.randperm(len(pairs), generator=generator)])
    return torch.stack(found)


def coalitions(order: Tensor) -> Tensor:
    """Who takes part: S before each pair, S + i, S + j, and all in the end. order [pairs, 2] -> bool [3 pairs + 1,
    players]

    >>> coalitions(torch.tensor([[1, 3], [0, 2]])).int()[:4]      # none, 1, 3; then these two
    tensor([[0, 0, 0, 0],
            [0, 1, 0, 0],
            [0, 0, 0, 1],
            [0, 1, 0, 1]], dtype=torch.int32)
    """
    pairs = len(order)
    turn = torch.empty(2 * pairs, dtype=torch.long)
    turn[order] = torch.arange(pairs).unsqueeze(1).expand(-1, 2)  # of each player
    before = turn < torch.arange(pairs).unsqueeze(1)              # [pairs, players]
    sets = torch.stack([before, before | F.one_hot(order[:, 0], 2 * pairs).bool(),
                        before | F.one_hot(order[:, 1], 2 * pairs).bool()], 1)
    return torch.cat([sets.flatten(0, 1), torch.ones(1, 2 * pairs, dtype=torch.bool)])


def contributions(v: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 2 and 3 of one order. v: of its coalitions [3 pairs + 1] -> phi [2 pairs], D [pairs]

    1 is worth 1, 3 is worth 2, both 4; the others nothing.

    >>> phi, d = contributions(torch.tensor([0., 1., 2., 4., 4., 4., 4.]), torch.tensor([[1, 3], [0, 2]]))
    >>> phi, d
    (tensor([0.0000, 1.5000, 0.0000, 2.5000]), tensor([1., 0.]))
    """
    none, first, second = v[:-1].view(-1, 3).unbind(1)            # v(S), v(S + i), v(S + j)
    both = v[3::3]                                                # v(S + i + j), the next v(S)
    phi = torch.empty(order.numel(), dtype=v.dtype)
    phi[order[:, 0]] = (first - none + both - second) / 2
    phi[order[:, 1]] = (second - none + both - first) / 2
    return phi, both - first - second + none
