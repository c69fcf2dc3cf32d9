"""An epoch of training: as runs do it, against loops written by hand and a plain Lightning module; on the CPU.

    python bench/epoch.py          two to three minutes; CIFAR-10 from DATA_DIR when it is there, else random images

ResNet-20, batches of 128, SGD with momentum and weight decay; the same loader and first weights for all. `reprune` is
`reprune.training.fit` with curve, logger and checkpoint, as a run calls it; the hand-written loop also sums up loss
and top-1, and must end with the same weights. The plain Lightning module logs both in every step and leaves all but the
progress bar at Lightning's defaults. Every round runs each of them over the same few batches, turn by turn. `epoch, s`
is the time of these plus, for the batches missing to a whole epoch, the mean time of those after the first. Ratios are
taken inside each round; medians, lowest and highest of the rounds.
"""

import contextlib
import copy
import io
import os
import tempfile
import warnings
from pathlib import Path
from statistics import median
from time import perf_counter

import pytorch_lightning as pl
import torch
from common import at_most, ratio, spread, value
from data_path import cifar
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

from reprune import models
from reprune.data import Data
from reprune.runs.loggers import open_logger
from reprune.runs.store import Store
from reprune.training.classifier import derive, fit

ROOT = Path(__file__).resolve().parent.parent
BATCHES, EPOCH, ROUNDS = 16, 391, 5                               # batches of a round, and of 50,000 images


class Clock(pl.Callback):
    """When the epoch began, each of its batches ended, and all of it did."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self, *_) -> None:
        self.times.append(perf_counter())

    on_train_epoch_start = on_train_batch_end = on_train_end = tick

    @property
    def step(self) -> float:
        """Seconds, without the first."""
        return (self.times[-2] - self.times[1]) / (len(self.times) - 3)

    @property
    def epoch(self) -> float:
        return self.times[-1] - self.times[0] + (EPOCH - len(self.times) + 2) * self.step


def by_fit(net: nn.Module, data: Data, cfg: DictConfig, clock: Clock) -> None:
    unfinished = Path(cfg.output_dir) / "unfinished.ckpt"
    fit(net, data, cfg, "baseline", "baseline", epochs=1, unfinished=unfinished,
        callbacks=[*open_logger(cfg, Store(cfg)).stage("baseline"), clock])
    unfinished.unlink()                                           # the next round begins anew


def by_hand(net: nn.Module, data: Data, cfg: DictConfig, clock: Clock, channels_last: bool = True, **options) -> None:
    """options: of the optimiser"""
    net.train()
    if not channels_last:
        net.to(memory_format=torch.contiguous_format)
    optimiser = instantiate(cfg.recipe.baseline.optimizer)(net.parameters(), **options)
    clock.tick()
    loss_sum, hits = torch.zeros(()), torch.zeros((), dtype=torch.long)
    for x, y in loader(data, cfg):
        if not channels_last:
            x = x.contiguous()
        logits = net(x)
        loss = F.cross_entropy(logits, y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss_sum += loss.detach() * len(y)
        hits += (logits.argmax(1) == y).sum()
        clock.tick()
    clock.tick()


class Plain(pl.LightningModule):
    """As a tutorial writes it."""

    def __init__(self, net: nn.Module, cfg: DictConfig):
        super().__init__()
        self.net, self.cfg = net, cfg

    def training_step(self, batch, _):
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        self.log("loss", loss)
        self.log("top1", (logits.argmax(1) == y).float().mean())
        return loss

    def configure_optimizers(self):
        return instantiate(self.cfg.recipe.baseline.optimizer)(self.parameters())


def by_lightning(net: nn.Module, data: Data, cfg: DictConfig, clock: Clock) -> None:
    net.train()
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", enable_progress_bar=False, callbacks=[clock],
                         default_root_dir=cfg.output_dir)
    trainer.fit(Plain(net, cfg), loader(data, cfg))


def loader(data: Data, cfg: DictConfig):
    """The batches that `fit` makes of this seed and stage."""
    return data.train(cfg.recipe.batch_size, derive(cfg.seed, "baseline"))


WAYS = {"hand-written loop": by_hand, "reprune": by_fit, "plain Lightning module": by_lightning,
        "hand-written, NCHW": lambda *a: by_hand(*a, channels_last=False),
        "hand-written, foreach": lambda *a: by_hand(*a, foreach=True),
        "hand-written, fused": lambda *a: by_hand(*a, fused=True)}


def difference(net: nn.Module, other: nn.Module) -> float:
    """The largest of all weights."""
    return max((a - b).abs().max().item() for a, b in zip(net.parameters(), other.parameters(), strict=True))


def main() -> list[dict]:
    os.environ["REPRUNE_ROOT"] = str(ROOT)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    start = models.resnet(20).to(memory_format=torch.channels_last)
    steps, epochs = {name: [] for name in WAYS}, {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["model=resnet20", "dataset=cifar10", "method=baseline", "recipe=cifar",
                                 "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
                                 f"output_dir={folder}"])
        data, images = cifar(limit=BATCHES * cfg.recipe.batch_size)
        for number in range(ROUNDS + 1):
            nets = {name: copy.deepcopy(start) for name in WAYS}
            for name, way in WAYS.items():
                clock = Clock()
                with contextlib.redirect_stdout(io.StringIO()):
                    way(nets[name], data, cfg, clock)
                if number:                                        # the first round warms up
                    steps[name].append(clock.step)
                    epochs[name].append(clock.epoch)
    hand = next(iter(WAYS))
    return [{"way": name, "step, ms": round(1000 * median(steps[name]), 1), "epoch, s": round(median(epochs[name]), 1),
             **spread(epochs[name], 1), "times hand-written": round(ratio(epochs[name], epochs[hand]), 3),
             "largest difference": f"{difference(nets[name], nets[hand]):.0e}", "threads": torch.get_num_threads(),
             "images": images} for name in WAYS]


def targets(rows: list[dict]) -> list[dict]:
    return [at_most("an epoch of a run, times the hand-written loop", value(rows, "times hand-written", way="reprune"),
                    1.05)]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
