r"""Group Fisher pruning.                                        Liu et al., ICML 2021, arXiv:2108.00708

    s_i = sum_n ( sum_x dL_n/dm_i^x )^2  /  d_i,          dL_n/dm_i^x = sum_hw A_nihw dL_n/dA_nihw           (1)

    m^x      a mask of ones on the inputs of layer x, one per channel; x over all layers that read filter i      [C]
    A, L_n   these inputs, and the loss of image n                                                    [N, C, H, W]
    d_i      what goes with filter i: output values of the layers that make it (memory), or multiply-adds of these and
             of the layers that read it, with as many channels as they have by then (macs), or 1 (none)

A layer that reads several channels of a filter (all of a conv group, all places of a flattened map) has one mask for
them. While the net trains, (1) is added up over the batches; every `interval` steps the one filter with the smallest
s_i goes, wherever it is, and the sums begin anew, until the budget is met. Then the net is fine-tuned as long as it was
trained.

A filter goes by being silenced for good; those are removed after training. If training ends before the budget is met,
the rest goes at once, by (1) on images drawn from the training set: give it enough epochs.

Needs: images, labels, gradients, training.

Deviations: the learning rates, and all of a use on CIFAR, are a reconstruction (recipe liu2021). Layers are grouped by
channels and not by their parents, which differs behind a concatenation. In (macs) a filter that its own layer reads is
not counted twice. Once the budget is met, training goes on to the end of the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.allocation import choice, removed
from reprune.pruning.during import During
from reprune.pruning.probe import Probe, eval_mode
from reprune.pruning.ranking import Budget
from reprune.pruning.sockets import Criterion, Scores
from reprune.structure.groups import FilterGroup, Plan, Slice, traced
from reprune.structure.surgery import mute


def importance(gradients: Tensor, order: int = 2) -> Tensor:
    """The numerator of eq. 1; first order: sum_n | sum_x dL_n/dm_i^x |. gradients [N, layers, filters] -> [filters]

    Two images, two layers, one filter: (1 + 2)^2 + (3 - 3)^2, where the sum of squares would be 23.

    >>> importance(torch.tensor([[[1.], [2.]], [[3.], [-3.]]]))
    tensor([9.])
    """
    return gradients.sum(1).abs().pow(order).sum(0)


class Masks:
    """Gradients of the masks of some groups, of every image of a batch, as a backward pass finds them."""

    def __init__(self, net: nn.Module, groups: Iterable[FilterGroup]):
        self.inputs: list[Tensor] = []                            # of the layers, of this batch
        self.found: dict[str, list[Tensor]] = {}                  # group -> dL/dm [N, filters] of each layer
        self.hooks = [net.get_submodule(s.module).register_forward_pre_hook(partial(self._see, g.name, s))
                      for g in groups for s in g.readers()]

    def _see(self, name: str, where: Slice, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        if not inputs[0].requires_grad:
            return None
        x = inputs[0].view_as(inputs[0])                          # what others do with it has other gradients
        index = where.index.to(x.device)                          # a copy to the device is no work for a backward pass
        seen = x.detach()                                         # a hook that holds x itself would keep the batch
        x.register_hook(lambda gradient: self._add(name, index, module, seen.float() * gradient))
        self.inputs.append(x)
        return (x,)

    def _add(self, name: str, index: Tensor, module: nn.Module, each: Tensor) -> None:
        each = each.movedim(-1, 1) if isinstance(module, nn.Linear) else each
        each = each.flatten(2).sum(2) if each.dim() > 2 else each                              # [N, C]
        self.found.setdefault(name, []).append(each[:, index].sum(2))

    def take(self) -> dict[str, Tensor]:
        """Of the batch that has just been gone through: group -> [N, layers, filters]"""
        found = {name: torch.stack(each, 1).detach() for name, each in self.found.items()}
        self.inputs, self.found = [], {}
        return found

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


class GroupFisher(Criterion):
    """Eq. 1, on images that are not augmented, in eval mode.

    n_samples    training images
    normalize    what d_i counts: memory | macs | none
    order        2: eq. 1 | 1: absolute values in place of squares
    """

    def __init__(self, n_samples: int = 1000, normalize: str = "memory", order: int = 2):
        choice("criterion.normalize", normalize, ("memory", "macs", "none"))
        if n_samples < 1 or order not in (1, 2):
            raise UserError(f"criterion: n_samples must be at least 1 and order 1 or 2, got {n_samples}, {order}")
        self.n_samples, self.normalize, self.order = n_samples, normalize, order

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        groups = list(groups)
        total = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in groups}
        masks, n = Masks(probe.net, groups), min(self.n_samples, len(probe.data.parts.train))
        try:
            with eval_mode(probe.net), torch.enable_grad():
                for x, y in probe.data.plain(probe.batch_size, probe.seed, n, str(probe.example.device.type)):
                    loss = F.cross_entropy(probe.net(x), y, reduction="sum")
                    torch.autograd.grad(loss, masks.inputs, allow_unused=True)
                    for name, gradients in masks.take().items():
                        total[name] += importance(gradients, self.order).cpu()
        finally:
            masks.remove()
        return self.normalized(total, groups, probe, {})

    def normalized(self, total: Scores, groups: list[FilterGroup], probe: Probe, plan: Plan) -> Scores:
        """Divided by d_i once `plan` is carried out."""
        return {g.name: total[g.name] / self.saved(g, probe, plan) for g in groups}

    def saved(self, group: FilterGroup, probe: Probe, plan: Plan) -> float:
        """d_i, at least 1"""
        if self.normalize == "memory":
            calls, made = traced(probe.net).calls, {s.module: s.index.shape[1] for s in group.producers(probe.net)}
            return max(1, sum(made[call.module] * call.positions for call in calls if call.module in made))
        if self.normalize == "macs":
            names = [g.name for g in probe.groups]
            gone = torch.tensor([int((~plan[name]).sum()) if name in plan else 0 for name in names])
            one = torch.tensor([name == group.name for name in names]).to(gone)
            return max(1, probe.costs.after(gone).macs - probe.costs.after(gone + one).macs)
        return 1


class Removal(During):
    """One filter every `interval` steps, while the net trains, until the budget of the allocation is met."""

    def __init__(self, criterion: Criterion, allocation: Any, interval: int = 25):
        if interval < 1:
            raise UserError(f"during.interval must be at least 1, got {interval}")
        super().__init__()
        self.criterion, self.allocation, self.interval = criterion, allocation, interval
        self.plan, self.total, self.steps = {}, {}, 0

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        if not isinstance(self.criterion, GroupFisher):
            raise UserError("method.during removes filters by a method.criterion reprune.methods.group_fisher."
                            f"GroupFisher, got {type(self.criterion).__name__} (method.during=null: all at once)")
        if not isinstance(self.allocation, Budget) or self.allocation.spread != "global":
            raise UserError("method.during removes one filter at a time until a budget is met: it needs "
                            "method/allocation=macs_global, or params with method.allocation.spread=global")

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        module.launch_each()
        self.probe = Probe(module.net, **self.view)
        self.groups = self.allocation.candidates(self.probe)
        self.masks = Masks(module.net, self.groups)
        self.plan = self.plan or {g.name: torch.ones(g.size, dtype=torch.bool) for g in self.groups}
        self.total = {name: total.to(module.device) for name, total in self.total.items()}    # where a stage goes on

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name, gradients in self.masks.take().items():         # of the mean loss of the batch
            self.total[name] = self.total.get(name, 0) + importance(len(gradients) * gradients, self.criterion.order)
        self.steps += 1
        if self.steps == self.interval and not self.enough():
            none = {g.name: torch.zeros(g.size, device=module.device) for g in self.groups}
            self.remove_one({name: trainer.strategy.reduce(total, reduce_op="sum").cpu()
                             for name, total in (none | self.total).items()})
        if self.steps == self.interval:
            self.steps, self.total = 0, {}
        mute(module.net, self.plan)                               # also what momentum has moved

    def remove_one(self, total: Scores) -> None:
        """The least important filter of all groups that may lose one."""
        scores = self.criterion.normalized(total, self.groups, self.probe, self.plan)
        open_ = [scores[g.name].masked_fill(~self.plan[g.name], torch.inf) for g in self.groups]
        for g, score in zip(self.groups, open_, strict=True):
            if int((~self.plan[g.name]).sum()) >= self.allocation.room(g, self.probe):
                score.fill_(torch.inf)
        least = torch.stack([score.min() for score in open_])
        if least.min().isfinite():
            at = int(least.argmin())
            self.plan[self.groups[at].name][open_[at].argmin()] = False

    def enough(self) -> bool:
        return getattr(self.probe.cost(self.plan), self.allocation.unit) <= self.allocation.budget(self.probe)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.masks.remove()
        print(f"{removed(self.plan)} filters went during training, one every {self.interval} steps: the budget is "
              + ("met" if self.enough() else "not met, the rest goes at once"), flush=True)

    def state_dict(self) -> dict:
        return {"plan": self.plan, "total": self.total, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.plan, self.total, self.steps = state["plan"], state["total"], state["steps"]
