"""What a criterion or an allocation may look at: the net, its groups and costs, training and held-out images.

The test set is not reachable from here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.structure.cost import Cost, CostTable
from reprune.structure.groups import FilterGroup, Plan, Slice, trace, traced
from reprune.structure.layers import filters_first
from reprune.structure.modes import eval_mode
from reprune.structure.surgery import remove, silenced

if TYPE_CHECKING:
    from reprune.pruning.sockets import Transform


@dataclass
class Probe:
    """A view of one net in one round."""

    net: nn.Module                      # on its device, traced
    example: Tensor                     # [1, C, H, W]
    data: Any = None                    # a `reprune.data` set; its test images are not used here
    seed: int = 0
    batch_size: int = 250
    share: float = 1.0                  # of the whole reduction that this round must reach
    original: Original | None = None    # the net before the first round
    soft: bool = False                  # filters are only silenced, and may come back
    given: bool = False                 # the first net came with its weights: who trained them has seen all images
    carried: dict = field(default_factory=dict)             # plain data that a criterion hands on to the next round
    memo: dict = field(default_factory=dict, init=False)    # what was found out about this net, for whoever asks again

    def __post_init__(self) -> None:
        trace(self.net, self.example)
        if self.original is None:
            self.original = Original(self.net, self.cost({}), {g.name: g.size for g in self.groups})

    @property
    def groups(self) -> list[FilterGroup]:
        return traced(self.net).groups

    @cached_property
    def costs(self) -> CostTable:
        return CostTable(self.net)

    def cost(self, plan: Plan) -> Cost:
        """Parameters and MACs after `plan`, computed without running the net."""
        return self.costs.plan(plan)

    def by_layer(self) -> Layers:
        """With the filters of each layer on their own; before anything is removed."""
        return Layers(**{f.name: getattr(self, f.name) for f in fields(self) if f.init})

    def generator(self) -> torch.Generator:
        """The same random numbers for the same seed, whatever ran before."""
        return torch.Generator().manual_seed(self.seed)

    def loss(self, plan: Plan, n: int = 1000) -> float:
        """Mean cross-entropy of the silenced net on n training images (or all) drawn with the probe's seed."""
        n = min(n, len(self.data.parts.train))
        loader = self.data.plain(self.batch_size, self.seed, n, self.example.device)
        with silenced(self.net, plan) as net:
            return evaluate(net, loader)[0]

    def accuracy(self, plan: Plan, repair: Iterable[Transform] = ()) -> float:
        """Top-1 in percent on the held-out part of the training set: of the silenced net, or of the smaller one that
        some repairs have been at."""
        repair, images = list(repair), self.held_out(self.batch_size)
        if not repair:
            with silenced(self.net, plan) as net:
                return evaluate(net, images)[1]
        net = remove(self.net, plan, check=False)
        for transform in repair:
            net = transform(net, self)
        return evaluate(net, images)[1]

    def check_held_out(self, who: str) -> None:
        """Raises UserError where there are no such images."""
        if not len(self.data.parts.val):
            raise UserError(f"{who}: dataset {self.data.name} holds no images out; set dataset.val_size (now 0)")

    def held_out(self, batch_size: int) -> Any:
        """Images to select on: batches of the part of the training set that a baseline trained here has not seen."""
        if self.given and not self.original.memo.setdefault("told", False):
            self.original.memo["told"] = True
            print("selecting on held-out images that the given weights (model.weights) were probably trained on: drops "
                  "of accuracy look smaller than they are; a baseline trained here has not seen them", flush=True)
        return self.data.val(batch_size, str(self.example.device.type))


class Layers(Probe):
    """The same with the filters of each layer on their own, whatever couples them. It knows no costs."""

    def __post_init__(self) -> None:
        trace(self.net, self.example)
        self.original = replace(self.original, sizes={g.name: g.size for g in self.groups})

    @cached_property
    def groups(self) -> list[FilterGroup]:
        coupled: dict[str, bool] = {}                             # a layer may feed several groups
        for g in traced(self.net).groups:
            for s in g.producers(self.net):
                coupled[s.module] = coupled.get(s.module, False) or g.coupled
        sizes = {name: len(filters_first(self.net.get_submodule(name))) for name in coupled}
        return [FilterGroup(name, sizes[name], (Slice(name, "out", torch.arange(sizes[name]).unsqueeze(1)),), both)
                for name, both in coupled.items()]

    @property
    def costs(self) -> CostTable:
        raise UserError("method.silence_layers needs an allocation by rates (uniform, per_layer): layers silenced on "
                        "their own make no smaller net")


@dataclass(frozen=True)
class Original:
    """The net before the first round: what a reduction is measured against."""

    net: nn.Module
    cost: Cost
    sizes: dict[str, int]                                     # filters per group
    memo: dict = field(default_factory=dict)                  # as of a probe, but for all rounds

    def look(self, now: Probe) -> Probe:
        """What `now` would have seen of it."""
        then = replace(now, net=self.net)
        then.memo = self.memo
        return then


@torch.no_grad()
def evaluate(net: nn.Module, loader: Any) -> tuple[float, float]:
    """-> mean cross-entropy, top-1 in percent; in eval mode, the mode is put back."""
    losses, hits, seen = [], [], 0                                # tensors: a GPU is waited for once, at the end
    with eval_mode(net):
        for x, y in loader:
            logits = net(x)                                       # [B, classes]
            losses.append(F.cross_entropy(logits, y, reduction="sum"))
            hits.append((logits.argmax(1) == y).sum())
            seen += len(y)
    loss = 0.0
    for value in torch.stack(losses).tolist():                    # in double precision, in this order
        loss += value
    return loss / seen, 100 * int(torch.stack(hits).sum()) / seen
