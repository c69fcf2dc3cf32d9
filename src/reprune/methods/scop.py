r"""SCOP: scientific control with knock-off features.                     Tang et al., NeurIPS 2020, arXiv:2010.10732

    A_l = kappa * A_l + (1 - kappa) * ~A_l                   kappa in [0, 1]^C, 1/2 at first, before batch norm      (1)
    s_c = |gamma_c| (kappa_c - (1 - kappa_c))                the share P of every layer with the smallest s_c goes   (2)

    A_l, ~A_l    outputs of conv l for the images, and for as many knock-off images beside them     [B, C, H, W]
    gamma        scale of the batch norm behind the conv                                            [C]

While kappa is learned, all else is frozen; batch norm takes the statistics of its batches, of images and knock-offs
together; the loss is that of the images alone. A channel whose mix stays with the knock-off says nothing of the image.
After the cut, batch norm's statistics are estimated anew, and the net is fine-tuned.

The control: `shuffle`, another image of the batch with its parts in another order; `noise`, normal noise with the mean
and deviation of the data; `gan`, images of a generator of your own (`generator`).

Needs: training, labels; a generator for `gan`.
Deviations: `shuffle` and `noise` stand in for the authors' generator, and the CIFAR schedule is a reconstruction. The
layers that add up in a residual stage share their filters, ranked by the mean of (2) over all but stem and shortcuts,
where the authors cut each and scatter what is left. Statistics are estimated on 50,000 training images (4 % of
ImageNet's) that are not augmented, the authors' in a pass over the training set. Without batch norm gamma is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.allocation import choice
from reprune.pruning.during import Gated, deciding, key, mean
from reprune.pruning.probe import Probe
from reprune.structure.chains import chains
from reprune.structure.groups import FilterGroup, trace, traced

PARTS = 4                               # an image is cut into as many rows and columns, or fewer, that divide it


class Mix(nn.Module):
    """Eq. 1, of a batch that is half images, half knock-offs.

    >>> Mix(1)(torch.tensor([[4.], [2.]]).view(2, 1, 1, 1)).flatten()        # half of 4 and half of 2; 2 stays
    tensor([3., 2.], grad_fn=<ViewBackward0>)
    """

    def __init__(self, channels: int):
        super().__init__()
        self.kappa = nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, out: Tensor) -> Tensor:
        if not self.training:
            return out
        real, knockoff = out.chunk(2)
        kappa = self.kappa.view(-1, 1, 1)
        return torch.cat([kappa * real + (1 - kappa) * knockoff, knockoff])


def score(kappa: Tensor, gamma: Tensor | float = 1.0) -> Tensor:
    """Eq. 2. [C], [C] -> [C]

    >>> score(torch.tensor([1.00, 0.50, 0.25]), torch.tensor([-2., 3., 4.]))
    tensor([ 2.,  0., -2.])
    """
    return torch.as_tensor(gamma).abs() * (kappa - (1 - kappa))


def shuffled(x: Tensor) -> Tensor:
    """Of each image another one, its parts in another order. [B, C, H, W] -> [B, C, H, W]"""
    rows, columns = (next(n for n in range(PARTS, 0, -1) if size % n == 0) for size in x.shape[2:])
    b, c, h, w = x.shape
    parts = x.roll(1, 0).reshape(b, c, rows, h // rows, columns, w // columns).movedim((2, 4), (1, 2)).flatten(1, 2)
    order = torch.rand(b, rows * columns, device=x.device).argsort(1)        # [B, parts]
    parts = parts[torch.arange(b, device=x.device).unsqueeze(1), order]
    return parts.unflatten(1, (rows, columns)).movedim((1, 2), (2, 4)).reshape(b, c, h, w)


class Knockoff(Gated):
    """Learns kappa while the net trains sparse.

    knockoff     shuffle | noise | gan
    generator    of gan: normal numbers [B, 128] -> normalised images [B, C, H, W]
    """

    def __init__(self, knockoff: str = "shuffle", generator: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        choice("during.knockoff", knockoff, ("shuffle", "noise", "gan"))
        if (knockoff == "gan") != (generator is not None):
            raise UserError("during.generator, {_target_: mine.generator}, makes the images of during.knockoff=gan: "
                            "give both, or choose shuffle or noise")
        self.knockoff, self.generator = knockoff, generator

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        if not any(deciding(g, probe.net) for g in groups):
            raise UserError(f"scop: {type(probe.net).__name__} has no conv behind its stem that may lose filters")

    def start(self, net: nn.Module) -> None:
        trace(net, self.view["example"])
        self.norms = {name: chain.norm for name, chain in chains(net).items()}
        for group in traced(net).groups:
            for layer in deciding(group, net):
                if key(layer) not in self.extra:                  # a layer may feed several groups
                    self.gate(net, layer, Mix(len(net.get_submodule(layer).weight)))
        self.before = {name: buffer.clone() for name, buffer in net.named_buffers()}       # by name: .to makes others
        net.requires_grad_(False)
        self.hooks += [net.register_forward_pre_hook(self.join), net.register_forward_hook(self.part)]

    def join(self, net: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (torch.cat([inputs[0], self.control(inputs[0])]),) if net.training else inputs

    def control(self, x: Tensor) -> Tensor:
        """Knock-off images. [B, C, H, W] -> [B, C, H, W]"""
        if self.knockoff == "gan":
            return self.generator(torch.randn(len(x), 128, device=x.device))
        return shuffled(x) if self.knockoff == "shuffle" else torch.randn_like(x)

    def part(self, net: nn.Module, _: Any, logits: Tensor) -> Tensor:
        return logits[:len(logits) // 2] if net.training else logits

    def parameters(self, net: nn.Module) -> Iterable[Tensor]:
        return list(self.extra.parameters())

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        for kappa in self.extra.parameters():
            kappa.clamp_(0, 1)

    @torch.no_grad()
    def learned(self, net: nn.Module) -> dict[str, Tensor]:
        net.requires_grad_(True)
        for name, buffer in net.named_buffers():                  # batch norm has seen mixed features
            buffer.copy_(self.before[name])
        scores = {}
        for group in traced(net).groups:
            of = [score(self.extra[key(layer)].kappa, self.gamma(net, layer))[at]
                  for layer, at in deciding(group, net).items()]
            scores |= {group.name: mean(of)} if of else {}
        return scores

    def gamma(self, net: nn.Module, layer: str) -> Tensor | float:
        norm = self.norms.get(layer)
        return 1.0 if norm is None or not net.get_submodule(norm).affine else net.get_submodule(norm).weight
