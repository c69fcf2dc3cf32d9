"""Checkpoints of a stage that trains: after every epoch, and in the middle of one before a signal takes effect."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from reprune.files import replacing

# What ends a process, asks a cluster's job to make way (submitit: SIGUSR2), or closes a terminal.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class WholeFile(TorchCheckpointIO):
    """Checkpoints that replace the one before in one step. Lightning's own come by way of the temporary folder:
    from another disk that is a copy, which a kill or a full disk stops half-way, and a kill leaves the original."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = BytesIO()                                        # torch.save tells nobody that a disk is full
        torch.save(checkpoint, buffer)
        with replacing(Path(path)) as part:
            part.write_bytes(buffer.getbuffer())


class Unfinished(pl.Callback):
    """Keeps in one file all that training needs to go on: weights, optimiser, schedule, callbacks, random numbers, and
    the place in the epoch. Must be the last callback: what the others do at the end of an epoch is in the file then.

    A signal that arrives meanwhile waits until the batch is done and the file written. Then it does what it would have
    done: it kills, raises KeyboardInterrupt, has a job requeued, or is ignored, and then training goes on.
    """

    def __init__(self, path: Path):
        self.path = path
        self.waiting: signal.Signals | None = None
        self.handlers: dict[signal.Signals, Any] = {}
        self.random: dict[str, Any] = {}                          # of the checkpoint this stage goes on from
        self.earlier = 0.0                                        # seconds that went into it
        self.started = time.monotonic()

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        if threading.current_thread() is threading.main_thread():         # Python takes signals nowhere else
            found = {number: signal.getsignal(number) for number in SIGNALS}
            self.handlers = {number: handler for number, handler in found.items() if handler is not None}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._hold()                 # only now: Lightning has set its own for SIGTERM, which ends even what ignores it
        if self.random:
            torch.set_rng_state(self.random["cpu"])
            torch.cuda.set_rng_state_all(self.random["cuda"][:torch.cuda.device_count()])   # of another machine

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._asked(trainer) and trainer.current_epoch > 0:    # the last epoch is saved, and its curve written
            self._let_go(f"{trainer.current_epoch} epochs")

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        if self._asked(trainer) and batch_idx + 1 < trainer.num_training_batches:
            trainer.save_checkpoint(self.path)
            self._let_go(f"{trainer.current_epoch} epochs and {batch_idx + 1} batches")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)                        # in one step: the old file or the new one

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._asked(trainer):
            self._let_go(f"{trainer.current_epoch} epochs")

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        seconds = self.earlier + time.monotonic() - self.started
        return {"cpu": torch.get_rng_state(), "cuda": cuda, "seconds": seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random, self.earlier = state, state["seconds"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "handlers": {}}                  # processes of their own find their own

    def _hold(self) -> None:
        for number in self.handlers:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.waiting = signal.Signals(number)

    def _asked(self, trainer: pl.Trainer) -> bool:
        """By a signal to this process, or to any of those that train together: they save together."""
        if trainer.world_size == 1:
            return self.waiting is not None
        return trainer.strategy.reduce_boolean_decision(self.waiting is not None or _orphaned(), all=False)

    def _let_go(self, done: str) -> None:
        number, self.waiting = self.waiting, None
        if number is None:
            if _orphaned():
                raise SystemExit("the process that started this one is gone")
            return                                                # another one got the signal, and ends this one
        print(f"{number.name}: saved after {done}; the same command goes on from there", flush=True)
        for held, handler in self.handlers.items():
            signal.signal(held, handler)
        signal.raise_signal(number)
        self._hold()                                              # it was to be ignored


def _orphaned() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def spent(checkpoint: Path | None) -> float:
    """Seconds that earlier attempts have put into a stage; 0 where they left nothing to go on from."""
    try:
        return _content(checkpoint)["callbacks"][Unfinished.__qualname__]["seconds"]
    except Exception:                                             # no file, mostly; of a damaged one the store tells
        return 0.0


def remember(callbacks: Iterable[pl.Callback], checkpoint: Path) -> None:
    """What callbacks know by now, where processes of their own have trained the net: only its weights come back."""
    states = _content(checkpoint)["callbacks"]
    for callback in callbacks:
        if callback.state_key in states:
            callback.load_state_dict(states[callback.state_key])


def _content(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)
