"""Training: one LightningModule for every stage of a run, and the callback that silences filters while it trains."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from reprune.data import Data
from reprune.errors import UserError
from reprune.pruning.probe import Probe, evaluate
from reprune.pruning.sockets import Method, Penalty, Step
from reprune.structure.surgery import zero_filters
from reprune.training.checkpoints import Unfinished, WholeFile, remember
from reprune.training.replay import NotRecordable, Recorder, Replay, Terms, Timeless
from reprune.training.speed import Compiled, fused, recorder

for library in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(library).setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*does not have many workers.*")
warnings.filterwarnings("ignore", ".*LeafSpec.*")
warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")
warnings.filterwarnings("ignore", "Total length of .* across ranks is zero")          # no image is held out
warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
warnings.filterwarnings("ignore", ".*`srun` command is available.*")


class Classifier(pl.LightningModule):
    """A net with a pluggable loss: cross-entropy plus any number of penalties, with or without a teacher.

    net: [B, C, H, W] -> logits [B, classes]; optimizer, scheduler: partial torch constructors (scheduler: per epoch).
    seed: with the epoch, of the global random numbers (dropout): an epoch does not depend on what ran before it.
    recorder, compiled: batches of `whole` images are recorded and replayed by the one, go through the other in place of
    the net. The last batch of an epoch may be smaller, and does without.
    """

    def __init__(self, net: nn.Module, stage: str, optimizer: Callable, scheduler: Callable | None = None,
                 penalties: Mapping[str, Penalty] | None = None, teacher: nn.Module | None = None, seed: int = 0, *,
                 whole: int = 0, recorder: Recorder | None = None, compiled: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.seed = seed
        self.sums: dict[str, Tensor] = {}                         # over the images of this epoch; saved in its middle
        self.seen = 0
        self.net, self.stage, self.penalties = net, stage, dict(penalties or {})
        self._optimizer, self._scheduler = optimizer, scheduler
        self._teacher = [teacher]                                 # in a list: not a submodule, not trained, not saved
        self._compiled, self._whole = [compiled], whole
        self._replay = None if recorder is None else Replay(net, partial(self.terms, kind=Timeless), recorder)
        self._replayed = False                                    # this step: gradients are there already

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
        logits = net(x)                                           # [B, classes]
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

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["curve"] = {"sums": self.sums, "seen": self.seen}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.sums, self.seen = checkpoint["curve"]["sums"], checkpoint["curve"]["seen"]

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.net.parameters(), **fused(self._optimizer, self.device.type))
        return {"optimizer": optimizer,
                **({"lr_scheduler": self._scheduler(optimizer)} if self._scheduler is not None else {})}

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


class PruningCallback(pl.Callback):
    """Silences filters on the method's schedule: their weights are set to zero in place, shapes stay, gradients are not
    masked, so a filter can come back (He et al. 2018). Before training and after every `every`-th epoch."""

    def __init__(self, method: Method, probe: Callable[[nn.Module], Probe], every: int = 1):
        self.method, self.probe, self.every = method, probe, every

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        if trainer.global_step == 0:                              # not where a stage goes on
            self.silence(module.net)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Classifier) -> None:
        if (trainer.current_epoch + 1) % self.every == 0 or trainer.current_epoch + 1 == trainer.max_epochs:
            self.silence(module.net)

    def silence(self, net: nn.Module) -> None:
        probe = self.probe(net)
        zero_filters(net, self.method.allocation(self.method.criterion(probe.groups, probe), probe))


class TrainingCurve(pl.Callback):
    """Means of every epoch for the record, whichever logger is chosen: loss, penalties, top-1 on the training images
    and on those held out of them. {name: a number per epoch}"""

    def __init__(self) -> None:
        self.means: dict[str, list[float]] = {}

    def state_dict(self) -> dict:
        return {"means": self.means}

    def load_state_dict(self, state: dict) -> None:
        self.means = {name: list(values) for name, values in state["means"].items()}

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Classifier) -> None:
        means = {name: trainer.strategy.reduce(total / module.seen, reduce_op="mean")
                 for name, total in module.sums.items()}
        if (held_out := trainer.callback_metrics.get(f"{module.stage}/val_top1")) is not None:
            means["val_top1"] = held_out
        for name, value in means.items():
            self.means.setdefault(name, []).append(float(f"{value.item():.5g}"))


class TestCurve(pl.Callback):
    """Top-1 on the test set after every epoch: only to record the best epoch beside the last one, as some papers report
    it. Nothing is selected by it."""

    def __init__(self, data: Data, cfg: DictConfig):
        self.data, self.cfg, self.top1 = data, cfg, []

    def state_dict(self) -> dict:
        return {"top1": self.top1}

    def load_state_dict(self, state: dict) -> None:
        self.top1 = list(state["top1"])

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Classifier) -> None:
        loader = self.data.test(self.cfg.recipe.eval_batch_size, device(self.cfg))
        self.top1.append(round(evaluate(module.net, loader)[1], 4))


def fit(net: nn.Module, data: Data, cfg: DictConfig, stage: str, part: str, *, epochs: int | None = None,
        penalties: Mapping[str, Penalty] | None = None, teacher: nn.Module | None = None,
        callbacks: Sequence[pl.Callback] = (), logger: Any = False, unfinished: Path | None = None) -> int:
    """Trains `net` in place by one part (baseline, sparse, between, recover) of the recipe. -> epochs run

    Every stage draws its random numbers from (seed, stage) alone: what ran before does not matter.
    unfinished: where it leaves checkpoints, and goes on from the one an earlier attempt has left.
    """
    recipe = cfg.recipe[part]
    if recipe is None:
        raise UserError(f"recipe {cfg.recipe.name!r} has no {part} part, which method {cfg.method.name!r} needs: "
                        "choose another recipe")
    epochs = recipe.epochs if epochs is None else epochs
    if epochs < 0:
        raise UserError(f"recipe.{part}.epochs must be at least 0, got {epochs}")
    if epochs == 0:
        return 0
    where = device(cfg)
    with seeded(cfg.seed, stage):
        if recipe.get("from_scratch"):
            reset(net)
        net.train()                                               # Lightning keeps the mode it finds
        module = Classifier(net, part, instantiate(recipe.optimizer), instantiate(recipe.scheduler), penalties, teacher,
                            derive(cfg.seed, stage), whole=cfg.recipe.batch_size, recorder=recorder(cfg, where),
                            compiled=Compiled(net) if cfg.speed.compile else None)
        loaders = Loaders(data, cfg, derive(cfg.seed, stage))
        going_on = unfinished is not None and unfinished.is_file()       # the store has looked whether it is whole
        saving = [Unfinished(unfinished)] if unfinished is not None else []
        together = where == "cuda" and cfg.trainer.get("sync_batchnorm", False)
        trainer = instantiate(cfg.trainer, max_epochs=epochs, logger=logger, callbacks=[*callbacks, *saving],
                              sync_batchnorm=together,
                              plugins=[LightningEnvironment(),    # a job of a cluster is one process to Lightning too
                                       WholeFile()])
        print(f"{stage}: {epochs} epoch{'s' * (epochs > 1)}" + ", going on where it was cut off" * going_on)
        try:
            trainer.fit(module, loaders, ckpt_path=unfinished if going_on else None)
        except SystemExit as end:                                 # what Lightning makes of an interrupt
            raise (end.__context__ if isinstance(end.__context__, KeyboardInterrupt) else end) from None
        if trainer.world_size > 1 and unfinished is not None:
            remember(callbacks, unfinished)
    net.to(where).zero_grad()                                     # gradients would be kept, and saved, for nothing
    return epochs


def reset(net: nn.Module) -> None:
    """Fresh weights for the same architecture, by each layer's own rule (convs: Kaiming normal, as the models here)."""
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def device(cfg: DictConfig) -> str:
    """The GPU when there is one and `trainer.accelerator` does not say otherwise."""
    return "cuda" if cfg.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu"


def derive(seed: int, name: str) -> int:
    """A seed for one purpose.

    >>> derive(0, "sparse") == derive(0, "sparse"), derive(0, "sparse") == derive(0, "recover")
    (True, False)
    """
    return int(hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:15], 16)


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Global random numbers that depend on (seed, name) alone; the outer state comes back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, name))
        yield
