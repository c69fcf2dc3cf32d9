r"""UCP: uniform channel pruning with modified SE blocks.                           Chang et al., 2020, arXiv:2010.01251

    y = sigmoid( W_2 relu( W_1 GAP(x) ) )                    a gate per channel and image; the conv gives out x y    (1)
    f_c = mean over images of y_c                                                                                    (2)
    a channel stays if  f_c > (1 +- lambda) mean_c f_c                                                               (3)

    x          outputs of a conv, before batch norm                        [B, C, H, W]
    W_1, W_2   [C/16, C] and back, without bias; [1, C] and back, with bias, where C <= 16

The gates are trained together with the net and taken out again; the narrow net is trained from scratch (recipe
chang2020), so only its widths matter. `factor` is 1 +- lambda. A stage of given width, instead of (3): method/
allocation=per_layer.

Needs: training, labels.
Deviations: the factor of each experiment and the layers it skips are a reconstruction, and so are residual nets, where
the authors' code contradicts itself: the channels of a stage are rated by the mean of (2) over the second convs of its
blocks, and go everywhere together, with zero-padded shortcuts into the stages behind it, too. First convs of blocks go
by their own gates, or keep their width as in the authors' code: skip ["*.conv1"]. Bottlenecks lose filters of all
convs; as in the paper, of the 3x3 conv alone: groups=inner, skip ["*conv1"]. (2) is taken over `n_samples` training
images; what is left of a gate when it is taken out, its mean, is multiplied into the filters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.allocation import Limits, keep_best
from reprune.pruning.during import Gated, deciding, key, mean
from reprune.pruning.probe import Probe
from reprune.pruning.sockets import Scores
from reprune.structure.groups import FilterGroup, Plan, trace, traced
from reprune.structure.modes import eval_mode


class Excitation(nn.Module):
    """Eq. 1. [B, C, H, W] -> the same. `total`: of y over the images it has seen, where it counts.

    >>> se = Excitation(32)
    >>> [tuple(w.shape) for w in se.parameters()], [tuple(w.shape) for w in Excitation(16).parameters()]
    ([(2, 32), (32, 2)], [(1, 16), (1,), (16, 1), (16,)])
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden, bias = (channels // 16, False) if channels > 16 else (1, True)
        self.branch = nn.Sequential(nn.Linear(channels, hidden, bias), nn.ReLU(), nn.Linear(hidden, channels, bias),
                                    nn.Sigmoid())
        self.total: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x.mean((2, 3)))                           # [B, C]
        if self.total is not None:
            self.total += y.sum(0)
        return x * y[:, :, None, None]


class Gates(Gated):
    """Trained with the net; then eq. 2.

    n_samples    training images, or all there are
    """

    def __init__(self, n_samples: int = 5000):
        super().__init__()
        if n_samples < 1:
            raise UserError(f"during.n_samples must be at least 1, got {n_samples}")
        self.n_samples = n_samples

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        if not any(isinstance(m, nn.Conv2d) for m in probe.net.modules()):
            raise UserError(f"ucp: {type(probe.net).__name__} has no conv to put an SE block on")

    def start(self, net: nn.Module) -> None:
        trace(net, self.view["example"])
        for layer in dict.fromkeys(s.module for g in traced(net).groups for s in g.producers(net)):
            if isinstance(conv := net.get_submodule(layer), nn.Conv2d):
                self.gate(net, layer, Excitation(len(conv.weight)))

    @torch.no_grad()
    def finish(self, net: nn.Module) -> dict:
        data, device = self.view["data"], self.view["example"].device.type
        n = min(self.n_samples, len(data.parts.train))
        for se in self.extra.values():
            se.total = torch.zeros(se.branch[0].in_features, device=device)
        with eval_mode(net):
            for x, _ in data.plain(self.view["batch_size"], self.view["seed"], n, device):
                net(x)
        self.means = {name: se.total / n for name, se in self.extra.items()}
        return super().finish(net)

    def learned(self, net: nn.Module) -> dict[str, Tensor]:
        scores = {}
        for group in traced(net).groups:
            layers = deciding(group, net) or {s.module: s.index[:, 0] for s in group.producers(net)}
            if of := [self.means[key(layer)][at] for layer, at in layers.items() if key(layer) in self.means]:
                scores[group.name] = mean(of)
        for name, conv in net.named_modules():
            if (y := self.means.get(key(name))) is not None:
                conv.weight *= y.view(-1, 1, 1, 1)
                if conv.bias is not None:
                    conv.bias *= y
        return scores


@dataclass(kw_only=True)
class BelowMean(Limits):
    """Eq. 3: what scores up to `factor` times the mean of its group goes."""

    factor: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor <= 0:
            raise UserError(f"allocation.factor must be above 0, got {self.factor}")

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        stay = {name: int((score > self.factor * score.mean()).sum()) for name, score in scores.items()}
        return {g.name: keep_best(scores[g.name], self.to_remove(stay[g.name], g, probe))
                for g in self.candidates(probe, scores)}
