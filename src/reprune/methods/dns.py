r"""Dynamic network surgery: weights are cut out and spliced back in.      Guo, Yao & Chen, NIPS 2016, arXiv:1608.04493

    T_i <- 0  if T_i = 1 and |w_i| <= 0.9 t,     T_i <- 1  if T_i = 0 and |w_i| > 1.1 t,     else T_i stays      (eq. 3)
    t = max(mu + c sigma, 0),    mu = mean |w|,    sigma = sqrt( (sum w^2 - n mu^2) / n )
    the net computes with w T;    w <- w - rate dL/d(w T),  all of w                                             (eq. 2)

    w, T    weights and bias of a layer, and its mask of ones and zeros
    t       once, of the n entries of the trained net's layer that are not zero
    c       `c_rate`: 3 and 4 in the authors' code, for LeNet-5; 1 here, as small layers do not recover from 3

Masks are looked at after a step with probability (1 + gamma step)^(-power), each layer on its own, until a last step
(`stop`); then they are fixed and training goes on. A weight that is cut out has the gradient of the masked one, not
zero, and so can grow back.

Needs: training.

Deviations: the optimiser's recipe is a reconstruction (the net's own, a tenth of the rate). Batch norm is not masked;
the paper's nets have none. A weight decay acts on all of w. Dense MACs do not fall. From a net that is not trained the
thresholds mean nothing: that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.masks import Latent, Weights
from reprune.pruning.probe import Probe

CUT, SPLICE = 0.9, 1.1


def threshold(w: Tensor, c_rate: float) -> float:
    """t. w: all entries of a layer [n]

    Of 1, -1, 3 and a zero that does not count: mu = 5/3, sigma = sqrt(11/3 - 25/9) = 0.943

    >>> round(threshold(torch.tensor([1., -1., 3., 0.]), 1.0), 3)
    2.609
    """
    w = w[w != 0].double()
    if not len(w):
        return 0.0
    mu = w.abs().mean()
    sigma = (w.square().mean() - mu.square()).clamp_min(0).sqrt()
    return max(float(mu + c_rate * sigma), 0.0)


def surgery(mask: Tensor, w: Tensor, t: float) -> Tensor:
    """Eq. 3.

    >>> surgery(torch.tensor([True, True, False, False]), torch.tensor([0.9, 1.0, -1.1, 1.2]), 1.0).tolist()
    [False, True, False, True]
    """
    return torch.where(w.abs() <= CUT * t, False, torch.where(w.abs() > SPLICE * t, True, mask))


class Surgery(Latent):
    """c_rate, gamma, power: as above; c_rates: of layers that have another one, {name: c_rate}; stop_conv, stop_linear:
    steps after which masks stay."""

    def __init__(self, c_rate: float = 1.0, gamma: float = 1e-3, power: float = 1.0, stop_conv: int = 10000,
                 stop_linear: int = 8000, skip: Sequence[str] = (), bias: bool = True,
                 c_rates: Mapping[str, float] | None = None):
        super().__init__(skip, bias)
        if min(gamma, power) < 0 or min(stop_conv, stop_linear) < 0:
            raise UserError("method.masks: gamma, power, stop_conv and stop_linear must be at least 0, "
                            f"got {gamma}, {power}, {stop_conv}, {stop_linear}")
        self.c_rate, self.c_rates, self.gamma, self.power = c_rate, dict(c_rates or {}), gamma, power
        self.stop_conv, self.stop_linear, self.thresholds, self.seed = stop_conv, stop_linear, {}, 0

    @torch.no_grad()
    def start(self, net: nn.Module, probe: Probe) -> None:
        super().start(net, probe)
        layers: dict[str, list[Tensor]] = {}
        for name, weight in self.latent.items():
            layers.setdefault(_layer(name), []).append(weight.flatten())
        if strange := [name for name in self.c_rates if name not in layers]:
            raise UserError(f"method.masks.c_rates: {strange[0]!r} is no layer with masks; there are "
                            f"{', '.join(layers)}")
        self.thresholds = {name: threshold(torch.cat(parts), self.c_rates.get(name, self.c_rate))
                           for name, parts in layers.items()}
        self.seed = probe.seed
        self.masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.latent.items()}
        self.update(self.weights(net), 0, 0)
        if empty := [_layer(name) for name, mask in self.masks.items() if name.endswith(".weight") and not mask.any()]:
            raise UserError(f"method.masks.c_rate leaves no weight of {empty[0]}, and nothing would learn any more: "
                            f"lower it, or give that layer its own: method.masks.c_rates={{{empty[0]}: 1}}")
        self.apply(self.weights(net))

    def update(self, weights: Weights, step: int, steps: int) -> None:
        chance = (1 + self.gamma * step) ** -self.power
        random = torch.Generator().manual_seed(self.seed + step)      # of this step alone: nothing to keep
        draws = torch.rand(len(self.thresholds), generator=random).tolist()
        looked = {layer for layer, draw in zip(self.thresholds, draws, strict=True) if draw < chance}
        for name, weight in self.latent.items():
            is_conv = weights[f"{_layer(name)}.weight"].dim() > 2
            if _layer(name) in looked and step < (self.stop_conv if is_conv else self.stop_linear):
                self.masks[name] = surgery(self.masks[name], weight, self.thresholds[_layer(name)])


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
