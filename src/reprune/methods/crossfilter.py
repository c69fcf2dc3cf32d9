r"""Cross-filter compression: weights of few bits; neighbouring filters share a scale.   Lyu, Zhu, Liu, arXiv:2005.09034

    1 bit     W_q = alpha_g sign(W),                                     alpha_g = mean |W| over group g,  sign(0) = 1
    b bits    W_q = alpha_g round( clip(W / alpha_g, -1, 1) n ) / n,     alpha_g = max |W| over group g, n = 2^(b-1) - 1
    dL/dW = dL/dW_q  where |W| <= 1, else 0

    W     weights of a conv                                                                        [c_out, c_in, k, k]
    g     `group_size` filters that follow each other; or, of each filter, the kernels of so many channels that do

The net computes with W_q; W goes on training underneath. The first and the last layer stay as they are. The file of a
net holds b bits for each weight and a scale for each group. Bits, and not filters or MACs, are what is saved.

Needs: training.

Deviations: a reconstruction. Known are the scale that spatially adjacent filters share and that the method builds on
binary-weight networks and XNOR-Net; grouping, the formula for several bits and the training are not. Of both versions
only that with binary weights is here: one whose inputs are binary too (XNOR) is another net, which a file of weights
does not describe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.models.packed import Packed, Parts
from reprune.pruning.allocation import choice
from reprune.pruning.masks import Latent, Weights
from reprune.pruning.probe import Probe

OVER = ("out_channels", "in_channels")


def scales(w: Tensor, bits: int, size: int, over: str) -> Tensor:
    """alpha_g. w [c_out, c_in, ...] -> [groups], or [c_out, groups] over input channels

    >>> w = torch.tensor([1., -3., 2., 4.]).view(4, 1, 1, 1)
    >>> scales(w, 1, 2, "out_channels"), scales(w, 2, 3, "out_channels")
    (tensor([2., 3.]), tensor([3., 4.]))
    """
    over_rows = over == "out_channels"
    parts = [part.abs().flatten(0 if over_rows else 1) for part in w.split(size, 0 if over_rows else 1)]
    return torch.stack([part.mean(-1) if bits == 1 else part.amax(-1) for part in parts], -1)


def spread(alpha: Tensor, shape: torch.Size, size: int) -> Tensor:
    """The scale of each weight, to be multiplied with weights of this shape."""
    each = alpha.repeat_interleave(size, -1)[..., :shape[alpha.dim() - 1]]
    return each.view(*each.shape, *[1] * (len(shape) - each.dim()))


def levels(w: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """W_q / alpha: -1 or 1, or whole steps of 1 / n between them.

    >>> [levels(torch.tensor([0., -2.1, 5.]), torch.tensor(4.), bits).tolist() for bits in (1, 2)]
    [[1.0, -1.0, 1.0], [0.0, -1.0, 1.0]]
    """
    if bits == 1:
        return torch.where(w >= 0, 1.0, -1.0)
    n = 2 ** (bits - 1) - 1
    return (w / alpha.clamp_min(torch.finfo(w.dtype).tiny)).clamp(-1, 1).mul(n).round() / n


class CrossFilter(Latent):
    """bits: 1 to 8; ends: the first and the last layer, too."""

    sparse = False

    def __init__(self, bits: int = 1, group_size: int = 4, share_over: str = "out_channels", ends: bool = False,
                 skip: Sequence[str] = ()):
        super().__init__(skip)
        _check("method.masks", bits, group_size, share_over)
        self.bits, self.size, self.over, self.ends = bits, group_size, share_over, ends

    def weights(self, net: nn.Module) -> Weights:
        """Of convs. Raises UserError where there is none."""
        first, *_, last = self.layers(net)
        ends = () if self.ends else (f"{first}.weight", f"{last}.weight")
        found = {name: w for name, w in super().weights(net).items() if w.dim() > 2 and name not in ends}
        if not found:
            raise UserError("method.masks: crossfilter finds no conv beside the first and the last layer")
        return found

    @torch.no_grad()
    def start(self, net: nn.Module, probe: Probe) -> None:
        super().start(net, probe)
        self.apply(self.weights(net))

    def shown(self, name: str, weight: Tensor) -> Tensor:
        alpha = spread(scales(weight, self.bits, self.size, self.over), weight.shape, self.size)
        return alpha * levels(weight, alpha, self.bits)

    @torch.no_grad()
    def before_step(self, weights: Weights) -> None:
        super().before_step(weights)
        for weight in weights.values():
            weight.grad.mul_(weight.abs() <= 1)


class Levels(Packed):
    """b bits for a weight, a float for a group; a layer that is not made of such levels stays as it is."""

    def __init__(self, bits: int = 1, group_size: int = 4, share_over: str = "out_channels"):
        _check("method.codec", bits, group_size, share_over)
        self.bits, self.size, self.over = bits, group_size, share_over
        self.most = 1 if bits == 1 else 2 ** (bits - 1) - 1

    def pack(self, weight: Tensor) -> Parts:
        if weight.dim() > 1:
            alpha = scales(weight, 2, self.size, self.over)       # the largest: it is among the levels
            each = spread(alpha, weight.shape, self.size)
            found = levels(weight, each, self.bits)
            if torch.equal(each * found, weight):
                steps = (found * self.most + self.most).round().long().flatten() >> (self.bits == 1)
                planes = (steps.unsqueeze(1) >> torch.arange(self.bits)) & 1                   # [n, bits]
                packed = torch.from_numpy(np.packbits(planes.to(torch.uint8).numpy()))
                return {"levels": packed, "raw": torch.empty(0), "scales": alpha.flatten()}
        return {"levels": torch.empty(0, dtype=torch.uint8), "raw": weight.flatten(), "scales": torch.empty(0)}

    def unpack(self, parts: Parts, shape: torch.Size) -> Tensor:
        if not len(parts["scales"]):
            return parts["raw"].view(shape)
        bits = np.unpackbits(parts["levels"].numpy(), count=shape.numel() * self.bits)
        planes = torch.from_numpy(bits).long().view(-1, self.bits)
        steps = (planes << torch.arange(self.bits)).sum(1) << (self.bits == 1)
        alpha = parts["scales"] if self.over == "out_channels" else parts["scales"].view(shape[0], -1)
        return spread(alpha, shape, self.size) * ((steps - self.most).float() / self.most).view(shape)


def _check(where: str, bits: int, size: int, over: str) -> None:
    choice(f"{where}.share_over", over, OVER)
    if not 1 <= bits <= 8 or size < 1:
        raise UserError(f"{where}: bits must lie in 1 to 8 and group_size be at least 1, got {bits}, {size}")
