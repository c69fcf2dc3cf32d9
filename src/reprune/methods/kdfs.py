r"""KDFS: knowledge-driven differential filter sampler.                               Lin et al., 2023, arXiv:2307.00198

    m_i  = [ gumbel_softmax( theta_i, tau ) ]_keep           theta in R^{C x 2}; 0 or 1, straight through            (1)
    tau  = tau_0 ( tau_1 / tau_0 )^(epoch / epochs)                                                                  (2)
    L    = CE + a T^2 KL( p^T(s) || p^T(t) ) + b RC + c ( MACs(m) / MACs(1) - r )^2                                  (3)
    RC   = mean over stages of || n(conv_1x1(A_s)) - n(A_t) ||^2 / HW,    n(A) = u / |u|,  u = mean_c A_c^2          (4)

    m        multiplies the filters of a layer; batch norm stays as it is          [C]
    s, t     logits of student and teacher, the unpruned net                       [B, classes]
    A_s, A_t what the stages of both give out                                      [B, C, H, W]
    r        share of the MACs that may stay (allocation.macs)

The student begins with fresh weights (recipe lin2023) and learns them together with theta, which has no weight decay.
After training a filter stays if theta says keep rather than drop, and the net is fine-tuned. The divergence is the
reverse of usual distillation: the student's probabilities weight it. r is no promise: (3) counts sampled masks.

Needs: training, labels, the unpruned net as teacher.
Deviations: layers whose outputs add up have one m, so that all of it can be cut; the authors sample the second conv of
each block by itself. Zeroed outputs keep the shift of their batch norm, and here filters are cut before fine-tuning, so
the shifts of all that go are lost before it; the authors fine-tune the masked net and cut then. MACs leave out batch
norm's. Stages are modules named layer1, layer2 .., and else what pooling layers read (a reconstruction). One optimiser
with two groups of parameters stands for two of the same schedule, which come to the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.allocation import keep_best
from reprune.pruning.during import Gated, key
from reprune.pruning.probe import Probe, eval_mode
from reprune.pruning.ranking import Goal
from reprune.pruning.sockets import Scores, Step
from reprune.structure.groups import FilterGroup, Plan

POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)


class Choice(nn.Module):
    """theta. tau -> eq. 1 while training, else what theta says. [C]"""

    def __init__(self, filters: int):
        super().__init__()
        self.theta = nn.Parameter(nn.init.kaiming_normal_(torch.empty(filters, 2, 1, 1)))

    def forward(self, tau: float) -> Tensor:
        theta = self.theta.flatten(1)
        return F.gumbel_softmax(theta, tau, hard=True)[:, 1] if self.training else (self.lead() > 0).float()

    def lead(self) -> Tensor:
        return self.theta[:, 1, 0, 0] - self.theta[:, 0, 0, 0]


def temperature(epoch: int, epochs: int, first: float = 1.0, last: float = 0.1) -> float:
    """Eq. 2.

    >>> [round(temperature(epoch, 2), 3) for epoch in (0, 1, 2)]
    [1.0, 0.316, 0.1]
    """
    return first * (last / first) ** (epoch / epochs)


def reversed_kl(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    """KL(student || teacher) of (3), the mean over images. [B, classes] -> []

    >>> reversed_kl(torch.tensor([[3., 1.]]).log(), torch.zeros(1, 2), 1.)       # 3/4 log(3/4 / 1/2) + 1/4 log ..
    tensor(0.1308)
    >>> reversed_kl(torch.zeros(1, 2), torch.tensor([[3., 1.]]).log(), 1.)       # 1/2 log(1/2 / 3/4) + 1/2 log ..
    tensor(0.1438)
    """
    return F.kl_div(F.log_softmax(teacher / t, 1), F.softmax(student / t, 1), reduction="batchmean")


def energy(features: Tensor) -> Tensor:
    """n(A) of (4). [B, C, H, W] -> [B, HW]

    >>> energy(torch.tensor([1., 2., 3., 2.]).view(1, 2, 1, 2))                  # u = (1 + 9) / 2, (4 + 4) / 2
    tensor([[0.7809, 0.6247]])
    """
    return F.normalize(features.square().mean(1).flatten(1))


def stages(net: nn.Module) -> list[tuple[str, bool]]:
    """Name and True of the modules that stages are; or, without such, name and False of what reads their outputs."""
    named = [name for name, _ in net.named_modules() if re.fullmatch(r"(.*\.)?layer\d+", name)]
    return [(name, True) for name in named] or [(name, False) for name, m in net.named_modules()
                                                if isinstance(m, POOLING)]


def watch(net: nn.Module, seen: dict[str, Tensor]) -> Iterator[Any]:
    """From now on the outputs of the stages are in `seen` after every forward pass. -> hooks"""
    for name, own in stages(net):
        module = net.get_submodule(name)
        yield (module.register_forward_hook(partial(_keep_output, seen, name)) if own else
               module.register_forward_pre_hook(partial(_keep_input, seen, name)))


def _keep_output(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple, out: Tensor) -> None:
    seen[name] = out


def _keep_input(seen: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple) -> None:
    seen[name] = inputs[0]


class Sampler(Gated):
    """Learns theta while the net trains sparse.

    allocation           whose groups are sampled, to its share of MACs
    kl, features, macs   the factors a, b, c of (3)
    temperature          T
    tau                  tau_0, tau_1
    """

    needs_teacher = True

    def __init__(self, allocation: Any, kl: float = 0.05, features: float = 1000.0, macs: float = 10_000.0,
                 temperature: float = 3.0, tau: Iterable[float] = (1.0, 0.1)):
        super().__init__()
        self.allocation, self.t, self.taus = allocation, temperature, tuple(tau)
        self.a, self.b, self.c, self.tau = kl, features, macs, self.taus[0]
        if min(kl, features, macs) < 0 or min(temperature, *self.taus) <= 0 or len(self.taus) != 2:
            raise UserError("during: kl, features and macs must be at least 0, temperature and both of tau above 0, "
                            f"got {kl}, {features}, {macs}, {temperature}, {list(self.taus)}")
        self.penalties = {"kl": self.imitate, "features": self.reconstruct, "macs": self.gap}
        self.masks: dict[str, Tensor] = {}
        self.mine, self.theirs = {}, {}                           # stage -> features [B, C, H, W]

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        if not isinstance(self.allocation, Sampled) or self.allocation.macs is None:
            raise UserError("method.during samples filters to a share of the MACs: it needs method/allocation=sampled")
        if not stages(probe.net):
            raise UserError(f"kdfs: {type(probe.net).__name__} has neither stages named layer1, layer2 .. nor pooling "
                            "layers, whose features the student could learn")

    def start(self, net: nn.Module) -> None:
        self.probe, device = Probe(net, **self.view), self.view["example"].device
        self.groups = self.allocation.candidates(self.probe)
        with torch.no_grad(), eval_mode(net):
            self.hooks += watch(net, self.mine)
            net(self.view["example"])
        for group in self.groups:
            self.extra[key(group.name)] = Choice(group.size).to(device)
        for name, features in self.mine.items():
            self.extra[f"decoder/{key(name)}"] = nn.Conv2d(features.shape[1], features.shape[1], 1).to(device)
        self.hooks.append(net.register_forward_pre_hook(self.draw))
        for layer in dict.fromkeys(s.module for g in self.groups for s in g.producers(net)):
            self.hooks.append(net.get_submodule(layer).register_forward_hook(partial(self.masked, layer)))

    def draw(self, net: nn.Module, _: Any) -> None:
        self.masks = {g.name: self.extra[key(g.name)].train(net.training)(self.tau) for g in self.groups}

    def masked(self, layer: str, module: nn.Module, _: Any, out: Tensor) -> Tensor:
        m, bias = self.on(layer, module).view(-1, *[1] * (out.dim() - 2)), module.bias
        bias = 0 if bias is None else bias.view_as(m)
        return (out - bias) * m + bias                            # as if m had multiplied the weights

    def on(self, layer: str, module: nn.Module) -> Tensor:
        """Of every filter of a layer. [C]"""
        m = module.weight.new_ones(len(module.weight))
        for group in self.groups:
            for s in (s for s in group.slices if (s.module, s.axis) == (layer, "out")):
                m = m.index_copy(0, s.index.flatten().to(m.device), self.masks[group.name].repeat_interleave(
                    s.index.shape[1]).to(m.dtype))
        return m

    def parameters(self, net: nn.Module) -> list[dict[str, Any]]:
        theta = [m.theta for m in self.extra.values() if isinstance(m, Choice)]
        decoders = [p for m in self.extra.values() if isinstance(m, nn.Conv2d) for p in m.parameters()]
        return [{"params": [*net.parameters(), *decoders]}, {"params": theta, "weight_decay": 0.0}]

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.tau = temperature(trainer.current_epoch, trainer.max_epochs, *self.taus)

    def imitate(self, step: Step) -> Tensor:
        """The second term of (3), and the teacher's features for the third."""
        hooks = list(watch(step.teacher, self.theirs))
        with torch.no_grad(), eval_mode(step.teacher):
            target = step.teacher(step.x).float()
        for hook in hooks:
            hook.remove()
        return self.a * self.t**2 * reversed_kl(step.logits, target, self.t)

    def reconstruct(self, step: Step) -> Tensor:
        return self.b * torch.stack([F.mse_loss(energy(self.extra[f"decoder/{key(name)}"](own).float()),
                                                energy(self.theirs[name].float()))
                                     for name, own in self.mine.items()]).mean()

    def gap(self, step: Step) -> Tensor:
        sizes = {g.name: g.size for g in self.groups}
        gone = torch.stack([sizes[g.name] - self.masks[g.name].sum() if g.name in sizes else step.logits.new_zeros(())
                            for g in self.probe.groups]).cpu()
        share = self.probe.costs.macs_after(gone) / self.probe.costs.after(torch.zeros_like(gone)).macs
        return self.c * (share - self.allocation.macs).square().to(step.logits)

    @torch.no_grad()
    def learned(self, net: nn.Module) -> dict[str, Tensor]:
        lead = {g.name: self.extra[key(g.name)].lead() for g in self.groups}
        # an allocation may keep more than theta says
        stay = self.allocation({name: score.cpu() for name, score in lead.items()}, self.probe)
        self.masks = {name: keep.to(lead[name]) for name, keep in stay.items()}
        for layer in dict.fromkeys(s.module for g in self.groups for s in g.producers(net)):
            module = net.get_submodule(layer)
            module.weight *= self.on(layer, module).view(-1, *[1] * (module.weight.dim() - 1))
        return lead


@dataclass(kw_only=True)
class Sampled(Goal):
    """What the sampler would rather drop goes (scores up to 0); macs: the share of them that training aims at."""

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        plan = {}
        for group in self.candidates(probe, scores):
            drop = int((scores[group.name] <= 0).sum())
            gone = probe.original.sizes.get(group.name, group.size) - group.size
            now = math.ceil((drop + gone) * probe.share - 1e-9) - gone
            plan[group.name] = keep_best(scores[group.name], self.to_remove(group.size - max(0, now), group, probe))
        return plan
