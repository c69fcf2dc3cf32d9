"""From a trained net to a smaller one in one call, outside of runs: `small = reprune.prune(net, example, macs=0.5)`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.methods.lasso import Channels, Refit
from reprune.pruning.latency import Latency
from reprune.pruning.probe import Probe
from reprune.pruning.ranking import Budget
from reprune.pruning.recalibrate import Recalibrate
from reprune.pruning.sockets import Criterion
from reprune.runs.places import packaged
from reprune.structure.groups import Plan
from reprune.structure.notes import notes
from reprune.structure.surgery import remove

Batches = Iterable[tuple[Tensor, Tensor]]
FOR_BN = 1000                           # images for new statistics
FOR_FIT, POINTS = 1000, 10              # images for least squares, and places of each


def prune(net: nn.Module, example: Tensor, *, macs: float | None = None, params: float | None = None,
          time: float | None = None, criterion: str | Criterion = "l1", data: Batches | None = None,
          groups: str = "inner", spread: str = "uniform", multiple: int = 1, min_keep: float = 0.0,
          refit: Batches | None = None, recalibrate: Batches | None = None) -> nn.Module:
    """-> a smaller copy in eval mode, that computes what `net` does without the filters that went.

    net          trained; any that `reprune.trace` follows
    example      one image [1, C, H, W], on the device of the net
    macs, params fraction of the multiply-adds or parameters that stays (give one of them), or
    time         fraction of the milliseconds that the image takes on its device; see `Latency`
    criterion    the name of a method whose criterion it is to be (l1, fpgm, taylor2019, hrank, ...), or a Criterion
    data         batches (x, y) of training images, such as a DataLoader; only where the criterion looks at some
    groups       inner: widths that no addition couples | all
    spread       uniform: the same rate in every layer | global: the lowest scores of the whole net first
    multiple     a layer that is cut keeps a multiple of it (8: widths that fast kernels like)
    min_keep     at least this fraction of every layer stays; with spread="global", try 0.1
    refit        batches of training images: each layer that reads fewer channels gets the weights that come nearest, by
                 least squares, to its outputs in `net`; more images than any of them reads channels
    recalibrate  batches of training images for new BN statistics of what is left

    Raises UserError for a budget that cannot be met, a criterion that is not known or that this net or data cannot
    serve. `reprune.plan(small)` says which filters stayed; `reprune.save` keeps the net.
    """
    limits = {"groups": groups, "spread": spread, "multiple": multiple, "min_keep": min_keep}
    if time is not None and (macs, params) != (None, None):
        raise UserError("give one of macs, params and time")
    allocation = Budget(macs=macs, params=params, **limits) if time is None else Latency(time=time, **limits)
    score = by_name(criterion) if isinstance(criterion, str) else criterion
    images = looks_at(score)
    if images and data is None:
        raise UserError(f"criterion {criterion!r} looks at training images: give data=LOADER, batches of (x, y)")
    given = Given(data, example.device, images) if images else None
    probe = Probe(net, example, given, batch_size=given.batch_size if given else 250)
    candidates = allocation.candidates(probe)
    score.check(candidates, probe)
    small = remove(net, allocation(score(candidates, probe), probe))
    repairs = ((refit, FOR_FIT, Refit(Channels(FOR_FIT, POINTS))), (recalibrate, FOR_BN, Recalibrate(FOR_BN)))
    for batches, n, repair in repairs:
        if batches is not None:
            given = Given(batches, example.device, n)
            small = repair(small, Probe(net, example, given, batch_size=given.batch_size))
    return small.eval()


def plan(net: nn.Module) -> Plan:
    """Which filters stayed when the net was last pruned: group -> bool mask, True = kept. {} if it never was."""
    history = notes(net).get("history") or [{}]
    return dict(history[-1])


def by_name(method: str) -> Criterion:
    """The criterion of a method, with the options of its config."""
    known = {file.stem: node for file in sorted(packaged().glob("conf/method/*.yaml"))
             if (node := OmegaConf.load(file).get("criterion")) is not None}
    if method not in known:
        raise UserError(f"criterion {method!r} is not known, choose one of {', '.join(known)}, or give a Criterion")
    return instantiate(known[method])


def looks_at(score: Criterion) -> int:
    """How many images, by its options."""
    return (score.n_samples or getattr(score, "n_examples", None)
            or getattr(score, "batches", 0) * getattr(score, "batch_size", 0))


class Given:
    """A user's batches, as criteria see training images: the first `most` of them, in their order, however often."""

    name = "data"

    def __init__(self, batches: Batches, device: torch.device, most: int):
        self.batches, count = [], 0
        for x, y in batches:
            self.batches.append((x.to(device), y.to(device)))
            if (count := count + len(x)) >= most:
                break
        if not count:
            raise UserError("data holds no batch: give an iterable of (x [B, C, H, W], y [B])")
        self.batch_size = max(2, len(self.batches[0][0]))         # what the user's memory holds
        self.classes = int(max(y.max() for _, y in self.batches)) + 1
        self.parts = SimpleNamespace(train=range(count), val=range(count))

    def plain(self, batch_size: int, seed: int, n: int | None = None, device: object = "cpu") -> Iterator:
        """n images in batches of that size; they were given in an order of the user's, seed changes nothing."""
        x, y = (torch.cat(each)[:n] for each in zip(*self.batches, strict=True))
        return zip(x.split(batch_size), y.split(batch_size), strict=True)

    def val(self, batch_size: int, device: object = "cpu") -> Iterator:
        return self.plain(batch_size, 0)
