"""${part:EPOCHS,SHARE} and ${parts:EPOCHS,SHARE,...} in recipes: a schedule follows the epochs of its stage, and a
training that is cut short keeps its shape."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from omegaconf import OmegaConf


def part(epochs: int, share: str | float) -> int:
    """The nearest epoch to that share of them, the earlier of two, at least 1.

    >>> part(200, "3/4"), part(100, "1/3"), part(5, "1/2"), part(1, "1/3")
    (150, 33, 2, 1)
    """
    return max(1, ceil(epochs * Fraction(str(share)) - Fraction(1, 2)))


def parts(epochs: int, *shares: str | float) -> list[int]:
    """Each by `part`.

    >>> parts(160, "1/2", "3/4"), parts(5, "1/2", "3/4")
    ([80, 120], [2, 4])
    """
    return [part(epochs, share) for share in shares]


for resolver in (part, parts):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
