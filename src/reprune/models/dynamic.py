"""Dynamic nets: a gate on a conv sees each image, and its channels that the image does not need are skipped.

    pi = min( relu( W_2 relu( W_1 GAP(x) ) + b ), 1000 ),      mask = pi [ pi >= threshold ]

    x      what the conv reads                    [B, C_in, H, W]
    mask   multiplies the outputs of conv and batch norm, and is 0 where a channel is skipped        [B, C]

A conv has a gate if batch norm alone reads it, but not the first one, nor shortcuts, nor grouped ones. A batch is
masked; one image alone, without gradients, is computed with the filters and inputs that its masks leave.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.structure.chains import Chain, chains
from reprune.structure.cost import PRODUCERS, macs_of
from reprune.structure.modes import eval_mode
from reprune.structure.notes import note

OPEN = -10_000.0                        # a threshold that no channel is below


class GatedConv(nn.Conv2d):
    """A conv with its gate. For whoever trains it: `pi` and `mask` [B, C] of the last batch."""

    def gated(self, squeeze_rate: int, source: GatedConv | None) -> None:
        hidden = self.out_channels // (max(1, squeeze_rate // 2) if self.out_channels < 80 else squeeze_rate)
        where = {"device": self.weight.device, "dtype": self.weight.dtype}
        self.gate = nn.Sequential(nn.Linear(self.in_channels, hidden, bias=False, **where), nn.ReLU(),
                                  nn.Linear(hidden, self.out_channels, **where), nn.ReLU())
        for linear in (self.gate[0], self.gate[2]):
            nn.init.kaiming_normal_(linear.weight)
        nn.init.ones_(self.gate[2].bias)
        self.register_buffer("threshold", torch.full((), OPEN, **where))
        self.source = (source,)                                   # in a tuple: not a submodule
        self.forget()

    def forget(self) -> None:
        self.pi = self.mask = self.features = self.live = None

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.source[0].live if self.source[0] is not None else None        # all there are of x; None: all
        seen = x.mean((2, 3))                                     # [B, C_in]
        if inputs is not None:
            seen = seen.new_zeros(1, self.in_channels).index_copy(1, inputs, seen)
        self.pi = self.gate(seen).clamp_max(1000)
        self.mask = self.pi * (self.pi >= self.threshold)
        self.live = None
        if len(x) > 1 or self.training or torch.is_grad_enabled():
            return super().forward(x)
        live = self.mask[0].nonzero().squeeze(1)
        weight, bias = self.weight, self.bias
        if 0 < len(live) < self.out_channels:
            self.live, weight, bias = live, weight[live], None if bias is None else bias[live]
        weight = weight if inputs is None else weight[:, inputs]
        return self._conv_forward(x, weight, bias)


class GatedNorm(nn.BatchNorm2d):
    """The batch norm behind a gated conv, and its mask."""

    def gated(self, conv: GatedConv, chain: Chain, scatters: bool) -> None:
        self.conv, self.relu, self.scatters = (conv,), chain.relu, scatters

    def forward(self, x: Tensor) -> Tensor:
        conv, = self.conv
        if conv.live is None:
            x = super().forward(x)
            conv.features = (x.relu() if self.relu else x).mean((2, 3)) if self.training else None      # [B, C]
            return x * conv.mask[:, :, None, None]
        x = F.batch_norm(x, *(None if of is None else of[conv.live]
                              for of in (self.running_mean, self.running_var, self.weight, self.bias)), eps=self.eps)
        x = x * conv.mask[:, conv.live, None, None]
        return x.new_zeros(1, self.num_features, *x.shape[2:]).index_copy(1, conv.live, x) if self.scatters else x


def gateable(net: nn.Module) -> dict[str, Chain]:
    """The convs that can have a gate. Raises UserError where there are none."""
    modules = dict(net.named_modules())
    first = next((name for name, m in modules.items() if isinstance(m, nn.Conv2d)), None)
    chosen = {name: chain for name, chain in chains(net).items()
              if name != first and "downsample" not in name and "shortcut" not in name and modules[name].groups == 1
              and isinstance(modules.get(chain.norm), nn.BatchNorm2d)}
    if not chosen:
        raise UserError(f"{type(net).__name__} cannot be dynamic: it has no conv, behind its first one, that a batch "
                        "norm alone reads, to put a gate on")
    return chosen


def gate(net: nn.Module, squeeze_rate: int = 2) -> nn.Module:
    """In place, under the old names: its weights stay what they were, its outputs do not. Raises UserError where no
    conv can have a gate.

    squeeze_rate    channels for each hidden unit of a gate; half as many below 80 channels
    """
    chosen, modules = gateable(net), dict(net.named_modules())
    read = {chain.source for chain in chosen.values()}
    for name, chain in chosen.items():
        conv, norm = _as(GatedConv, modules[name]), _as(GatedNorm, modules[chain.norm])
        conv.gated(squeeze_rate, modules.get(chain.source) if chain.source in chosen else None)
        norm.gated(conv, chain, scatters=name not in read)
        for path, module in ((name, conv), (chain.norm, norm)):
            parent, _, last = path.rpartition(".")
            setattr(net.get_submodule(parent), last, module)
            modules[path] = module
    net.register_forward_hook(forget)
    note(net, gates={"squeeze_rate": squeeze_rate})
    return net


def _as(kind: type[nn.Module], module: nn.Module) -> Any:
    """The same module, of a class derived from its own."""
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    return made


def forget(net: nn.Module, *_: Any) -> None:
    """The last batch, whose graph a copy of the net cannot take along; but not while somebody learns from it."""
    for conv in gates(net) if not net.training else ():
        conv.forget()


def gates(net: nn.Module) -> list[GatedConv]:
    """Those of a dynamic net, in order of execution; none of any other."""
    return [m for m in net.modules() if isinstance(m, GatedConv)]


@torch.no_grad()
def macs_mean(net: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Multiply-adds of an image, gates included, on average over the images of a loader."""
    total, images = 0.0, 0

    def count(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        if isinstance(module, GatedConv):
            reads, source = module.in_channels, module.source[0]
            reads = reads if source is None else (source.mask != 0).sum(1).double()                   # [B]
            each = module.kernel_size[0] * module.kernel_size[1] * out[0, 0].numel()
            total += float((reads * each * (module.mask != 0).sum(1).double()).sum())
        else:
            total += macs_of(module, out)

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, PRODUCERS)]
    try:
        with eval_mode(net):
            for x, _ in loader:
                net(x)
                images += len(x)
    finally:
        for hook in hooks:
            hook.remove()
    return total / images
