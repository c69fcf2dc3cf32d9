"""The sockets a pruning method plugs into. A `Method` has no behaviour of its own: its YAML node fills these, so the
YAML is the summary of the method, and an ablation (that criterion with this allocation) is a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.pruning.during import During
from reprune.pruning.masking import Masking
from reprune.pruning.silencing import PruningCallback
from reprune.structure.groups import FilterGroup, Plan
from reprune.structure.surgery import remove

if TYPE_CHECKING:
    from reprune.pruning.masks import WeightMask
    from reprune.pruning.probe import Probe
    from reprune.pruning.rounds import Round

Scores = dict[str, Tensor]
"""Group name -> one score per filter, float [size]; larger = keep."""


@dataclass
class Step:
    """What a penalty may look at in one training step."""

    net: nn.Module
    x: Tensor                           # [B, C, H, W]
    y: Tensor                           # [B]
    logits: Tensor                      # [B, classes]
    epoch: int = 0
    teacher: nn.Module | None = None    # the unpruned net, in eval mode, where a penalty has `needs_teacher = True`


class Penalty(Protocol):
    """Added to the cross-entropy; sparse regularisers and distillation alike. One that defines start(net) may change
    fresh weights before the first step; before_epoch(net, share) may change what the net does in an epoch, after which
    that share of them is done; after_step(net, rate), all weights after every step at that learning rate."""

    def __call__(self, step: Step) -> Tensor: ...


def begin(net: nn.Module, penalties: Mapping[str, Penalty] | None) -> None:
    """Fresh weights as the penalties want them, in place."""
    for penalty in (penalties or {}).values():
        if hasattr(penalty, "start"):
            penalty.start(net)


class Criterion:
    """How much each filter matters. Subclasses give `score`; one that must see all groups at once gives `scores`.

    n_samples    training images it looks at, drawn with the probe's seed; None: it looks at weights alone
    """

    n_samples: int | None = None

    def check(self, groups: Iterable[FilterGroup], probe: Probe) -> None:
        """Raises UserError where this net or these images cannot serve it. Asked before anything trains."""

    def score(self, group: FilterGroup, probe: Probe) -> Tensor:
        """-> [size], larger = keep."""
        raise TypeError(f"{type(self).__name__} must define score(group, probe) or scores(groups, probe)")

    def scores(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        return {g.name: self.score(g, probe).detach().float().cpu() for g in groups}

    @torch.no_grad()
    def __call__(self, groups: Iterable[FilterGroup], probe: Probe) -> Scores:
        """Raises UserError where a score is no number: sorted, such filters would stay or go by their position."""
        found = self.scores(groups, probe)
        for name, scores in found.items():
            if lost := int(scores.isnan().sum()):
                raise UserError(f"{type(self).__name__} scores {lost} of the {len(scores)} filters of {name} as NaN: "
                                "the weights of the net, or what the criterion computes from them, are not finite")
        return found


class Allocation(Protocol):
    """How many filters of each group stay, given their scores: a rate, a threshold, a budget, a search over widths."""

    def candidates(self, probe: Probe) -> list[FilterGroup]:
        """The groups it may prune, in order of execution: what rounds go through."""

    def __call__(self, scores: Scores, probe: Probe) -> Plan:
        """Prunes only groups that have scores."""


class Search(Protocol):
    """Which filters stay: a better choice of as many filters per group as the allocation's plan has."""

    def __call__(self, plan: Plan, probe: Probe) -> Plan: ...


class Surgery:
    """Makes the net of a plan: here by taking filters out of the net there is."""

    def __call__(self, plan: Plan, probe: Probe) -> nn.Module:
        return remove(probe.net, plan)


class Transform(Protocol):
    """Changes weights or BN statistics right after surgery, never shapes. probe: of the net before it."""

    def __call__(self, net: nn.Module, probe: Probe) -> nn.Module: ...


class Codec(Protocol):
    """A net as a file of few bytes, and back: what is measured is the net that the file gives."""

    def encode(self, net: nn.Module, file: Path) -> None: ...

    def decode(self, file: Path) -> nn.Module: ...


class Rounds(Protocol):
    """One shot, n steps with a rising rate, layer by layer."""

    def __call__(self, plan: Callable[[], Plan]) -> Iterable[Round]:
        """plan(): what would go if everything went at once."""


@dataclass
class Method:
    """One pruning method: sockets, filled by conf/method/<name>.yaml."""

    name: str
    criterion: Criterion | None = None
    allocation: Allocation | None = None
    rounds: Rounds | None = None
    search: Search | None = None                                              # null: the filters with the lowest scores
    surgery: Surgery = field(default_factory=Surgery)                         # how a plan is carried out
    penalties: Mapping[str, Penalty] = field(default_factory=dict)            # while training sparse
    silence_every: int = 0                                                    # epochs between soft prunings, 0 = never
    during: During | None = None                                              # what else happens meanwhile
    silence_layers: bool = False              # each layer its own filters, until the last time; False: coupled together
    silence_gradients: bool = False           # of silenced filters, until the next soft pruning
    repair: Mapping[str, Transform] = field(default_factory=dict)             # right after surgery, one after the other
    recover_penalties: Mapping[str, Penalty] = field(default_factory=dict)    # while recovering
    between_penalties: Mapping[str, Penalty] | None = None                    # between rounds; null: the same
    masks: WeightMask | None = None                                           # single weights that stay zero
    codec: Codec | None = None                                                # the net that is left, as a small file
    prunes: bool = True                                                       # False: the unpruned control

    def __post_init__(self) -> None:
        if self.prunes and not (self.criterion and self.allocation and self.rounds):
            raise UserError(f"method {self.name!r} must fill criterion, allocation and rounds (or say prunes: false)")
        if self.prunes and self.masks is not None:
            raise UserError(f"method {self.name!r}: masks of single weights do not outlive the removal of filters: say "
                            "prunes: false, or masks: null")
        self.penalties, self.repair = self.penalties or {}, self.repair or {}    # null: none
        self.recover_penalties = self.recover_penalties or {}
        if self.between_penalties is None:
            self.between_penalties = self.recover_penalties
        if len([1 for part in (self.silence_every > 0, self.during, self.masks) if part]) > 1:
            raise UserError(f"method {self.name!r}: give one of silence_every, during and masks")
        self.during = PruningCallback(self) if self.silence_every > 0 else \
            Masking(self.masks) if self.masks is not None else self.during or During()

    def check(self, probe: Probe) -> None:
        """Raises UserError where it cannot serve this net with these images; before anything trains."""
        groups = self.allocation.candidates(probe) if self.prunes else probe.groups
        chosen = (self.criterion, self.allocation, self.search, self.surgery, *self.repair.values())
        for part in (self.during, *self.penalties.values(), *(chosen if self.prunes else ())):
            if hasattr(part, "check"):
                part.check(groups, probe)
        if self.silence_layers and self.prunes:
            layers = probe.by_layer()
            self.allocation({g.name: torch.zeros(g.size) for g in layers.groups}, layers)

    @property
    def trains_sparse(self) -> bool:
        return bool(self.penalties) or type(self.during) is not During
