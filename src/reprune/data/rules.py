"""Problems that a rule defines: all of their cases are made here, as images of one pixel, a channel for each input."""

from itertools import product

import torch
from torch import Tensor

from reprune.data.sampler import generator
from reprune.data.small import _data
from reprune.data.split import stratified
from reprune.data.tensor import TensorData
from reprune.errors import UserError

VALUES = (3, 3, 2, 3, 4, 2)             # of the six attributes of a robot: 432 cases, 17 inputs
TRAINED = {1: 124, 2: 169, 3: 122}      # cases that the published training sets have
NOISE = 0.05                            # of the training labels of problem 3


def monks(problem: int, **knobs) -> TensorData:
    """MONK's problems (Thrun et al. 1991). The test set is all 432 cases, as published; the training set has as many
    cases as the published one, drawn here (the same always), and in problem 3 as much noise."""
    if problem not in TRAINED:
        raise UserError(f"dataset monks: problem is {problem}; use 1, 2 or 3")
    cases = list(product(*(range(1, n + 1) for n in VALUES)))
    labels = torch.tensor([RULES[problem](*case) for case in cases]).long()
    _, drawn = stratified(labels, TRAINED[problem], seed=problem)
    noisy = labels[drawn]
    if problem == 3:
        wrong = torch.randperm(len(drawn), generator=generator(problem))[:round(NOISE * len(drawn))]
        noisy[wrong] = 1 - noisy[wrong]
    pixels = torch.stack([torch.cat([torch.arange(n) + 1 == value for n, value in zip(VALUES, case, strict=True)])
                          for case in cases])                                # [432, 17], one of each attribute is True
    return _data((_pixels(pixels[drawn]), noisy), (_pixels(pixels), labels), **knobs)


# Of a robot's head, body, smile, thing held, jacket and tie.
RULES = {1: lambda a, b, c, d, e, f: a == b or e == 1,
         2: lambda *case: case.count(1) == 2,
         3: lambda a, b, c, d, e, f: e == 3 and d == 1 or e != 4 and b != 3}


def xor(**knobs) -> TensorData:
    """Exclusive or: four cases, which are the training and the test set."""
    cases = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    part = _pixels(cases), cases.sum(1) % 2
    return _data(part, part, **knobs)


def _pixels(cases: Tensor) -> Tensor:
    """[N, inputs] of 0 and 1 -> uint8 [N, 1, 1, inputs], black or white"""
    return (255 * cases).to(torch.uint8)[:, None, None]
