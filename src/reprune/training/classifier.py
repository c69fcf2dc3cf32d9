"""Training: one LightningModule for every stage of a run, and the function that trains a net by a part of a recipe."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from reprune.data import Data
from reprune.errors import UserError
from reprune.models.fresh import reset
from reprune.pruning.during import During
from reprune.pruning.sockets import Penalty, Step, begin
from reprune.training.callbacks import Threads, TrainingCurve
from reprune.training.checkpoints import Unfinished, WholeFile, remember, spent
from reprune.training.replay import NotRecordable, Recorder, Replay, Terms, Timeless
from reprune.training.seeds import derive, seeded
from reprune.training.speed import Compiled, fused, keep_memory, recorder

for library in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(library).setLevel(logging.WARNING)
for message in (".*does not have many workers.*", ".*LeafSpec.*", ".*have no `val_dataloader`.*",
                "Total length of .* across ranks is zero",        # no image is held out
                ".*smaller than the logging interval.*", ".*`srun` command is available.*"):
    warnings.filterwarnings("ignore", message)


class Classifier(pl.LightningModule):
    """A net with a pluggable loss: cross-entropy plus any number of penalties, with or without a teacher.

    net: [B, C, H, W] -> logits [B, classes]; optimizer, scheduler: partial torch constructors (scheduler: per epoch).
    seed: with the epoch, of the global random numbers (dropout): an epoch does not depend on what ran before it.
    during: what a method does meanwhile; it says what the optimiser moves.
    recorder, compiled: batches of `whole` images are recorded and replayed by the one, go through the other in place of
    the net. The last batch of an epoch may be smaller, and does without.
    """

    def __init__(self, net: nn.Module, stage: str, optimizer: Callable, scheduler: Callable | None = None,
                 penalties: Mapping[str, Penalty] | None = None, teacher: nn.Module | None = None, seed: int = 0, *,
                 during: During | None = None, whole: int = 0, recorder: Recorder | None = None,
                 compiled: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        during = during or During()
        self.seed, self.extra, self._moved = seed, during.extra, during.parameters
        self.sums: dict[str, Tensor] = {}                         # over the images of this epoch; saved in its middle
        self.seen = 0
        self.net, self.stage, self.penalties = net, stage, dict(penalties or {})
        self._optimizer, self._scheduler = optimizer, scheduler
        self._teacher = [teacher]                                 # in a list: not a submodule, not trained, not saved
        self._compiled, self._whole = [compiled], whole
        self._replay = None if recorder is None else Replay(net, partial(self.terms, kind=Timeless), recorder)
        self._replayed = False                                    # this step: gradients are there already

    def launch_each(self) -> None:
        """Nothing replayed or compiled from now on: somebody looks into the layers at every step."""
        self._replay, self._compiled = None, [None]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, y = batch
        terms = self._recorded(x, y) or self.terms(x, y)
        loss = terms["total"]
        self._add({name: term for name, term in terms.items() if name != "total"}, len(y))
        if (not loss.is_cuda or self.global_step % 50 == 0) and not torch.isfinite(loss):
            raise UserError(f"loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}) of the "
                            f"{self.stage} stage: lower its learning rate (recipe.{self.stage}.optimizer.lr) or the "
                            "weight of its penalties")
        return loss

    def terms(self, x: Tensor, y: Tensor, kind: type[Step] = Step) -> Terms:
        """Cross-entropy ("loss"), penalties, their sum ("total") and top-1 in percent of one batch."""
        net = self._compiled[0] if self._compiled[0] is not None and len(y) == self._whole else self.net
        logits = net(x).float()                                   # [B, classes], whatever the precision of the net
        total = loss = F.cross_entropy(logits, y)
        step = kind(self.net, x, y, logits, self.current_epoch, self._teacher[0])
        penalties = {f"penalty/{name}": penalty(step) for name, penalty in self.penalties.items()}
        for penalty in penalties.values():
            total = total + penalty
        return {"loss": loss, **penalties, "top1": 100 * (logits.argmax(1) == y).float().mean(), "total": total}

    def _recorded(self, x: Tensor, y: Tensor) -> Terms | None:
        """The same, with gradients, where steps are replayed."""
        self._replayed = False
        if self._replay is None or len(y) != self._whole:
            return None
        try:
            terms = self._replay(x, y)
        except NotRecordable as error:
            print(f"steps are not replayed, but launched kernel by kernel: {error}")
            self._replay = None
            return None
        self._replayed = True
        return terms

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if not self._replayed:
            optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        if not self._replayed:
            loss.backward()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        x, y = batch
        self.log(f"{self.stage}/val_top1", 100 * (self(x).argmax(1) == y).float().mean(), batch_size=len(y),
                 sync_dist=self.trainer.world_size > 1)

    def on_train_start(self) -> None:
        if self._teacher[0] is not None:
            self._teacher[0].to(self.device).eval()

    def on_train_epoch_start(self) -> None:
        self.sums, self.seen = {}, 0
        rank = f" of process {self.global_rank}" if self.global_rank else ""      # each drops out others
        torch.manual_seed(derive(self.seed, f"epoch {self.current_epoch}{rank}"))

    def on_train_epoch_end(self) -> None:
        for name, total in self.sums.items():
            self.log(f"{self.stage}/{name}", total / self.seen, prog_bar="top1" in name,
                     sync_dist=self.trainer.world_size > 1)

    def means(self) -> dict[str, Tensor]:
        """Of this epoch so far, over all processes: each must ask."""
        return {name: self.trainer.strategy.reduce(total / self.seen, reduce_op="mean")
                for name, total in self.sums.items()}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["curve"] = {"sums": self.sums, "seen": self.seen}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.sums, self.seen = checkpoint["curve"]["sums"], checkpoint["curve"]["seen"]

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self._moved(self.net), **fused(self._optimizer, self.device.type))
        return [optimizer], [] if self._scheduler is None else [self._scheduler(optimizer)]

    def _add(self, means: Mapping[str, Tensor], images: int) -> None:
        """To the curve of this epoch. Not through self.log, which costs more per step and is not in a checkpoint."""
        self.seen += images
        for name, mean in means.items():
            total = mean.detach().float() * images
            self.sums[name] = self.sums[name].to(total.device) + total if name in self.sums else total


class Loaders(pl.LightningDataModule):
    """The images of one stage; where several processes train together, each makes its own."""

    def __init__(self, data: Data, cfg: DictConfig, seed: int):
        super().__init__()
        self.data, self.recipe, self.seed, self.where = data, cfg.recipe, seed, device(cfg)

    def train_dataloader(self) -> Any:
        share = self.trainer.global_rank, self.trainer.world_size
        return self.data.train(self.recipe.batch_size, self.seed, self.where, share)

    def val_dataloader(self) -> Any:
        return self.data.val(self.recipe.eval_batch_size, self.where) if len(self.data.parts.val) else []


def fit(net: nn.Module, data: Data, cfg: DictConfig, stage: str, part: str, *, epochs: int | None = None,
        penalties: Mapping[str, Penalty] | None = None, teacher: nn.Module | None = None,
        during: During | None = None, callbacks: Sequence[pl.Callback] = (), unfinished: Path | None = None,
        batches: int | None = None) -> dict[str, Any]:
    """Trains `net` in place by one part (baseline, sparse, between, recover) of the recipe. -> facts: the epochs run,
    their curve, the seconds they took, how many of these `earlier` attempts took, which were cut off, and what `during`
    has learned for criteria ("carried")

    Every stage draws its random numbers from (seed, stage) alone: what ran before does not matter.
    teacher: the unpruned net, for penalties that need one.
    unfinished: where it leaves checkpoints, and goes on from the one an earlier attempt has left.
    batches: of an epoch, at most; it counts as none then.
    """
    recipe, seed, during, carried = planned(cfg, part, epochs), derive(cfg.seed, stage), during or During(), {}
    epochs, penalties = recipe.epochs, {**(penalties or {}), **during.penalties}
    if not any(getattr(penalty, "needs_teacher", False) for penalty in (during, *penalties.values())):
        teacher = None
    curve, earlier, started = TrainingCurve(), spent(unfinished), time.perf_counter()
    if epochs > 0:
        with seeded(cfg.seed, stage):
            if recipe.get("from_scratch"):
                reset(net)
                begin(net, penalties)
            during.start(net)
            net.train()                                           # Lightning keeps the mode it finds
            module = Classifier(net, part, instantiate(recipe.optimizer), instantiate(recipe.scheduler), penalties,
                                copy.deepcopy(teacher), seed, during=during, whole=cfg.recipe.batch_size,
                                recorder=recorder(cfg, device(cfg)),
                                compiled=Compiled(net) if cfg.speed.compile else None)
            train(module, Loaders(data, cfg, seed), cfg, stage, epochs, [Threads(), curve, *callbacks, during],
                  unfinished, **({} if batches is None else {"limit_train_batches": batches}))
            during.extra.to(device(cfg))                          # Lightning leaves both on the CPU
            carried = during.finish(net.to(device(cfg)))
        net.to(device(cfg)).zero_grad()                           # gradients would be kept, and saved, for nothing
    else:
        during.untrained(net)
    seconds = earlier + time.perf_counter() - started
    return {"epochs": epochs if batches is None else 0, "curve": curve.means, "seconds": seconds, "earlier": earlier,
            "carried": carried}


def planned(cfg: DictConfig, part: str, epochs: int | None) -> DictConfig:
    """That part of the recipe, with as many epochs as a round says, which its schedule then follows, or its own."""
    if cfg.recipe[part] is None:
        raise UserError(f"recipe {cfg.recipe.name!r} has no {part} part, which method {cfg.method.name!r} needs: "
                        "choose another recipe")
    cfg = copy.deepcopy(cfg)
    if epochs is not None:
        OmegaConf.update(cfg, f"recipe.{part}.epochs", epochs, force_add=True)
    if cfg.recipe[part].epochs < 0:
        raise UserError(f"recipe.{part}.epochs must be at least 0, got {cfg.recipe[part].epochs}")
    return cfg.recipe[part]


def train(module: Classifier, loaders: Loaders, cfg: DictConfig, stage: str, epochs: int,
          callbacks: Sequence[pl.Callback], unfinished: Path | None, **options: Any) -> None:
    """By Lightning, from the checkpoint on if there is one. options: of its trainer, beside those of `cfg`"""
    saving = [] if unfinished is None else [Unfinished(unfinished)]
    keep_memory(device(cfg))
    going_on = bool(saving) and unfinished.is_file()              # the store has looked whether it is whole
    trainer = instantiate(cfg.trainer, max_epochs=epochs, logger=False, callbacks=[*callbacks, *saving],
                          sync_batchnorm=device(cfg) == "cuda" and cfg.trainer.get("sync_batchnorm", False),
                          plugins=[LightningEnvironment(),        # a job of a cluster is one process to Lightning too
                                   WholeFile()], **options)
    print(f"{stage}: {epochs} epoch{'s' * (epochs > 1)}" + ", going on where it was cut off" * going_on)
    try:
        trainer.fit(module, loaders, ckpt_path=unfinished if going_on else None)
    except SystemExit as end:                                     # what Lightning makes of an interrupt
        raise (end.__context__ if isinstance(end.__context__, KeyboardInterrupt) else end) from None
    if trainer.world_size > 1 and saving:
        remember(callbacks, unfinished)


def device(cfg: DictConfig) -> str:
    """The GPU when there is one and `trainer.accelerator` does not say otherwise."""
    return "cuda" if cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"
