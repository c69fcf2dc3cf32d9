r"""ManiDP: manifold regularised dynamic pruning.                             Tang et al., CVPR 2021, arXiv:2103.05861

    L   = CE + a sum_l mean_i ( w_i mean_c pi_lic ) + b sum_l || G(F_l) - G(pi_l) ||_F^2 / B^2                       (1)
    w_i = [ L_i < C ] ( (C - L_i) / C )^gamma                C = half the mean CE of the epoch before                (2)
    G(X) = X' X'^T,  the rows of X' those of X over their norms                              [B, B]                  (3)
    after every epoch but the first:  threshold_l = the ceil(r(e) C_l)-th largest mean of pi_l over the epoch        (4)
    r(e) = (1 - r) / 2 cos( pi (e + 1) / E ) + (1 + r) / 2                                                           (5)

    pi_l   what the gate of conv l says of each channel for each image (models/dynamic.py)     [B, C_l]
    F_l    the means of the maps of conv l, before they are masked                             [B, C_l]
    L_i    the cross-entropy of image i, through which (2) has a gradient; at least 1e-10 is left of w_i

Easy images are to do with fewer channels (2), and like images with like channels (3). No smaller net comes of it: the
gates stay, parameters grow, and what is saved is the mean over the test images (`macs_mean` of a record). The net
starts trained; gates have no weight decay (recipe tang2021).

Needs: training, labels.
Deviations: gates begin at pi = 1, so that the net starts as it was trained; the authors draw W_2 too, which suits nets
that were trained with gates (their checkpoints hold some): with gates that are drawn (gates=kaiming) training of the
public ResNet-20 diverges in its first steps. Schedules change per epoch, the authors' with every step. Gates for nets
other than residual ones of basic blocks, on every conv that batch norm alone reads but the first, are a reconstruction,
and so are `remain` for all but ResNet-56 and the weights a, b for ImageNet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.models.dynamic import forget, gate, gateable, gates
from reprune.pruning.during import During
from reprune.pruning.probe import Probe, evaluate
from reprune.pruning.sockets import Step
from reprune.structure.groups import FilterGroup


def ease(losses: Tensor, limit: float, gamma: float = 1.0) -> Tensor:
    """Eq. 2, with what is left of it at least. [B] -> [B]

    >>> ease(torch.tensor([0.0, 0.5, 3.0]), limit=1.0)
    tensor([1.0000e+00, 5.0000e-01, 1.0000e-10])
    """
    return ((limit - losses) / limit).clamp_min(0).pow(gamma).clamp_min(1e-10)


def gram(x: Tensor) -> Tensor:
    """Eq. 3. [B, C] -> [B, B]

    >>> gram(torch.tensor([[3., 4.], [0., 2.]]))
    tensor([[1.0000, 0.8000],
            [0.8000, 1.0000]])
    """
    x = F.normalize(x.float())
    return x @ x.T


def remaining(epoch: int, epochs: int, remain: float) -> float:
    """Eq. 5.

    >>> [round(remaining(epoch, 4, 0.6), 3) for epoch in range(4)]
    [0.941, 0.8, 0.659, 0.6]
    """
    return (1 - remain) / 2 * math.cos(math.pi * (epoch + 1) / epochs) + (1 + remain) / 2


def threshold(saliency: Tensor, share: float) -> Tensor:
    """Eq. 4. [C] -> []

    >>> threshold(torch.tensor([0.1, 0.4, 0.3, 0.2]), 0.6)                       # ceil(2.4) stay
    tensor(0.2000)
    """
    return saliency.topk(math.ceil(share * len(saliency) - 1e-9)).values[-1]


class Manifold(During):
    """Gates that are trained with the net, and stay in it.

    remain          r, of the channels of a layer
    lasso, graph    a, b of (1)
    limit           of the mean cross-entropy, below which an image is easy
    gamma           of (2)
    squeeze_rate    channels for each hidden unit of a gate; half as many below 80 channels
    gates           how they begin: identity, with W_2 = 0 | kaiming, with W_2 drawn
    """

    def __init__(self, remain: float = 0.6, lasso: float = 5e-3, graph: float = 1.0, limit: float = 0.5,
                 gamma: float = 1.0, squeeze_rate: int = 2, gates: str = "identity"):
        super().__init__()
        if gates not in ("identity", "kaiming"):
            raise UserError(f"during: gates must be identity or kaiming, got {gates!r}")
        if not 0 < remain <= 1 or min(lasso, graph) < 0 or min(limit, gamma, squeeze_rate) <= 0:
            raise UserError("during: remain must be above 0 and at most 1, lasso and graph at least 0, the others "
                            f"above 0, got {remain}, {lasso}, {graph}, {limit}, {gamma}, {squeeze_rate}")
        self.remain, self.a, self.b, self.share, self.gamma = remain, lasso, graph, limit, gamma
        self.squeeze_rate, self.identity = squeeze_rate, gates == "identity"
        self.penalties = {"lasso": self.sparse, "graph": self.alike}
        self.limit, self.sums = 0.0, {}                           # C; of this epoch: the loss, images, and pi of gates

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        gateable(probe.net)

    def start(self, net: nn.Module) -> None:
        where, data = str(self.view["example"].device.type), self.view["data"]
        self.limit = self.share * evaluate(net, data.plain(self.view["batch_size"], self.view["seed"], None, where))[0]
        gate(net, self.squeeze_rate)
        for conv in gates(net) if self.identity else ():
            nn.init.zeros_(conv.gate[2].weight)

    def parameters(self, net: nn.Module) -> list[dict[str, Any]]:
        of_gates = [p for conv in gates(net) for p in conv.gate.parameters()]
        own = {id(p) for p in of_gates}
        return [{"params": [p for p in net.parameters() if id(p) not in own]},
                {"params": of_gates, "weight_decay": 0.0}]

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        module.launch_each()                                      # (2) follows the epochs
        self.sums = {name: value.to(module.device) for name, value in self.sums.items()}      # where a stage goes on

    def sparse(self, step: Step) -> Tensor:
        """The second term of (1); and the sums of this epoch."""
        losses, convs = F.cross_entropy(step.logits, step.y, reduction="none"), gates(step.net)
        found = {"loss": losses.sum(), "images": losses.new_tensor(len(losses)),
                 **{f"{i}": conv.pi.float().sum(0) for i, conv in enumerate(convs)}}
        self.sums = {name: self.sums.get(name, 0) + value.detach() for name, value in found.items()}
        w = ease(losses, self.limit, self.gamma)                  # [B]
        return self.a * torch.stack([(w * conv.pi.float().mean(1)).mean() for conv in convs]).sum()

    def alike(self, step: Step) -> Tensor:
        """The third term of (1)."""
        return self.b * torch.stack([(gram(conv.features) - gram(conv.pi)).square().sum()
                                     for conv in gates(step.net)]).sum() / len(step.y)**2

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        sums = {name: trainer.strategy.reduce(value, reduce_op="sum") for name, value in self.sums.items()}
        self.limit, self.sums = self.share * float(sums["loss"] / sums["images"]), {}
        share = remaining(trainer.current_epoch, trainer.max_epochs, self.remain)
        for i, conv in enumerate(gates(module.net) if trainer.current_epoch else ()):
            conv.threshold.copy_(threshold(sums[f"{i}"] / sums["images"], share))

    def finish(self, net: nn.Module) -> dict:
        forget(net.eval())
        return {}

    def state_dict(self) -> dict:
        return {"limit": self.limit, "sums": self.sums}

    def load_state_dict(self, state: dict) -> None:
        self.limit, self.sums = state["limit"], state["sums"]
