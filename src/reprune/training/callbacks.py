"""What happens between the steps and epochs of every stage: curves grow."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from reprune.data import Data
from reprune.files import write_text
from reprune.pruning.probe import evaluate

if TYPE_CHECKING:
    from reprune.training.classifier import Classifier


class Threads(pl.Callback):
    """As many on the CPU in processes that train together as in the one that starts them: they begin with others, and
    the record names these."""

    def __init__(self) -> None:
        self.number = torch.get_num_threads()

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        torch.set_num_threads(self.number)


class Penalties(pl.Callback):
    """Tells penalties that define before_epoch(net, share) of every epoch, and lets those that define after_step(net,
    rate) change the weights after every step of the optimiser."""

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        if any(hasattr(penalty, "before_epoch") for penalty in module.penalties.values()):
            module.launch_each()
            self.on_train_epoch_start(trainer, module)            # one that goes on in its middle does not start again

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        for penalty in module.penalties.values():
            if hasattr(penalty, "before_epoch"):
                penalty.before_epoch(module.net, (trainer.current_epoch + 1) / trainer.max_epochs)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Classifier, *_: Any) -> None:
        for penalty in module.penalties.values():
            if hasattr(penalty, "after_step"):
                penalty.after_step(module.net, trainer.optimizers[0].param_groups[0]["lr"])


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
        means = module.means()
        if (held_out := trainer.callback_metrics.get(f"{module.stage}/val_top1")) is not None:
            means["val_top1"] = held_out
        for name, value in means.items():
            self.means.setdefault(name, []).append(float(f"{value.item():.5g}"))


class TestCurve(pl.Callback):
    """Top-1 on the test set after every epoch: only to record the best epoch beside the last one, as some papers report
    it. Nothing is selected by it."""

    def __init__(self, data: Data, batch_size: int):
        self.data, self.batch_size, self.top1 = data, batch_size, []

    def state_dict(self) -> dict:
        return {"top1": self.top1}

    def load_state_dict(self, state: dict) -> None:
        self.top1 = list(state["top1"])

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Classifier) -> None:
        loader = self.data.test(self.batch_size, module.device.type)
        self.top1.append(round(evaluate(module.net, loader)[1], 4))


class CsvCurve(pl.Callback):
    """A row per epoch in a file. Not one of Lightning's loggers, which hear of an epoch after its checkpoint is saved:
    the epoch would be lost where the run is cut off between the two."""

    def __init__(self, file: Path, grown: Callable[[], None]):
        self.file, self.grown, self.rows = file, grown, []

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        self.rows = [row for row in read(self.file) if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Classifier) -> None:
        means = {f"{module.stage}/{name}": mean for name, mean in module.means().items()}     # every process takes part
        if trainer.is_global_zero:
            values = {name: value.item() for name, value in {**trainer.callback_metrics, **means}.items()}
            self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step,
                              **dict(sorted(values.items()))})
            write(self.file, self.rows)
            self.grown()


def read(file: Path) -> list[dict[str, float]]:
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]
    return [{**row, "epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]


def write(file: Path, rows: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())
