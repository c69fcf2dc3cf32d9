"""Unstructured pruning: single weights that stay zero while a net trains on. What a method with `masks` plugs in.

    start         before the first step: chooses the masks, on the trained net
    before_step   gradients are there, the optimiser has not moved yet
    after_step    `update`, on a schedule of its own, then `apply`

Shapes never change. State is plain tensors by name, in every checkpoint: what is cut off goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.probe import Probe
from reprune.structure.groups import PRODUCERS

Weights = dict[str, nn.Parameter]
"""`layer.weight` -> the weight of a conv or linear layer, and `layer.bias`, where a method masks biases."""


class WeightMask:
    """What is zero stays zero, and so does its momentum. Subclasses fill `masks` in `start`, and may change them in
    `update`.

    masks   name -> True where a weight stays, of its shape
    skip    layers that are left alone, by name
    bias    biases are masked, too
    sparse  what is zero is so by a mask, and is counted
    """

    sparse = True

    def __init__(self, skip: Sequence[str] | None = (), bias: bool = False):
        self.skip, self.bias = tuple(skip or ()), bias
        self.masks: dict[str, Tensor] = {}

    def weights(self, net: nn.Module) -> Weights:
        """Of what may be masked, in the net's order. Raises UserError for a layer to skip that is none."""
        layers = self.layers(net)
        if unknown := [name for name in self.skip if name not in layers]:
            raise UserError(f"method.masks.skip: there is no conv or linear layer {unknown[0]!r}; they are: "
                            f"{', '.join(layers)}")
        found = {f"{name}.{part}": getattr(m, part) for name, m in layers.items() if name not in self.skip
                 for part in ("weight", "bias")[:1 + self.bias]}
        return {name: weight for name, weight in found.items() if weight is not None}

    @staticmethod
    def layers(net: nn.Module) -> dict[str, nn.Module]:
        return {name: m for name, m in net.named_modules() if isinstance(m, PRODUCERS)}

    def check(self, probe: Probe) -> None:
        """Raises UserError where this net or these images cannot serve it; before anything trains."""
        self.weights(probe.net)

    def start(self, net: nn.Module, probe: Probe) -> None:
        """Chooses the masks, and applies them."""
        raise TypeError(f"{type(self).__name__} must define start(net, probe)")

    def before_step(self, weights: Weights) -> None:
        """May change gradients."""

    def update(self, weights: Weights, step: int, steps: int) -> None:
        """May change masks, after `step` of all `steps`."""

    @torch.no_grad()
    def after_step(self, weights: Weights, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        self.update(weights, step, steps)
        self.apply(weights, optimizer)

    @torch.no_grad()
    def apply(self, weights: Weights, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Zero where the masks say so, in what an optimiser remembers of the weights too."""
        tensors, masks = [], []
        for name, weight in weights.items():
            known = optimizer.state.get(weight, {}).values() if optimizer is not None else ()
            like = [weight.data, *(t for t in known if isinstance(t, Tensor) and t.shape == weight.shape)]
            tensors, masks = tensors + like, masks + [self.masks[name]] * len(like)
        torch._foreach_mul_(tensors, masks)

    def state_dict(self) -> dict:
        return {"masks": self.masks}

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def to(self, device: torch.device) -> None:
        """Its state, which a checkpoint may have brought from elsewhere."""
        self.load_state_dict({name: {key: tensor.to(device) for key, tensor in tensors.items()}
                              for name, tensors in self.state_dict().items()})


class Latent(WeightMask):
    """Full weights go on training underneath; the net computes with what `shown` makes of them. Gradients are those
    with respect to the weights that are shown, and go straight through to the full ones (Bengio et al. 2013).

    latent   name -> the full weight
    """

    def __init__(self, skip: Sequence[str] | None = (), bias: bool = False):
        super().__init__(skip, bias)
        self.latent: dict[str, Tensor] = {}

    def shown(self, name: str, weight: Tensor) -> Tensor:
        return weight * self.masks[name]

    @torch.no_grad()
    def start(self, net: nn.Module, probe: Probe) -> None:
        self.latent = {name: weight.detach().clone() for name, weight in self.weights(net).items()}

    @torch.no_grad()
    def before_step(self, weights: Weights) -> None:
        for name, weight in weights.items():
            weight.copy_(self.latent[name])

    @torch.no_grad()
    def after_step(self, weights: Weights, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        for name, weight in weights.items():
            self.latent[name].copy_(weight)
        super().after_step(weights, optimizer, step, steps)

    @torch.no_grad()
    def apply(self, weights: Weights, optimizer: torch.optim.Optimizer | None = None) -> None:
        """What the optimiser remembers is of the full weights, and stays."""
        for name, weight in weights.items():
            weight.copy_(self.shown(name, self.latent[name]))

    def state_dict(self) -> dict:
        return {**super().state_dict(), "latent": self.latent}


def strongest(scores: dict[str, Tensor], rate: float, scope: str) -> dict[str, Tensor]:
    """True where a score is not among the smallest: floor(rate * n) of each layer's n go, or of all layers' together.

    >>> scores = {"a": torch.tensor([1., 4.]), "b": torch.tensor([5., 6.])}
    >>> [strongest(scores, 0.5, scope)["a"].tolist() for scope in ("layer", "global")]
    [[False, True], [False, False]]
    """
    if scope == "layer":
        return {name: _largest(score.flatten(), rate).view(score.shape) for name, score in scores.items()}
    keep = _largest(torch.cat([score.flatten() for score in scores.values()]), rate)
    parts = keep.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _largest(scores: Tensor, rate: float) -> Tensor:
    gone = scores.argsort(stable=True)[:int(rate * len(scores) + 1e-9)]        # of equal ones the first
    return torch.ones(len(scores), dtype=torch.bool, device=scores.device).index_fill_(0, gone, False)


def share(name: str, value: float) -> float:
    """The same. Raises UserError unless it is a share of the weights below all of them."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise UserError(f"method.masks.{name} must lie in [0, 1), got {value}")
    return value
