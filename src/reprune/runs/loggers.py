"""Where curves go: CSV files beside the record, Weights & Biases too, or nowhere."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from reprune.errors import UserError
from reprune.runs.store import Store
from reprune.schema import Claim
from reprune.training.callbacks import CsvCurve, read

NO_KEY = "no API key was found"


def open_logger(cfg: DictConfig, store: Store) -> NoLogger:
    return {"csv": CsvLogger, "wandb": WandbRun, "none": NoLogger}[cfg.logger.kind](cfg, store)


class NoLogger:
    """Logs nothing; also the interface of the others."""

    def __init__(self, cfg: DictConfig, store: Store):
        self.cfg, self.store = cfg, store

    def stage(self, name: str) -> list[pl.Callback]:
        """What follows the training of a stage."""
        return []

    def close(self, record: dict | None = None, failed: bool = False) -> None:
        """After the run, with its record, or with failed=True."""


class CsvLogger(NoLogger):
    """<output_dir>/<key>/<stage>/metrics.csv: a row per epoch. A stage that goes on goes on with its rows."""

    def __init__(self, cfg: DictConfig, store: Store):
        super().__init__(cfg, store)
        self.again = cfg.force and not store.stages.is_dir()      # not an attempt that goes on
        for file in self.files() if self.again else ():
            if file.parent.name != "baseline":                    # which is not trained again
                file.unlink()

    def files(self) -> list[Path]:
        """Of the stages so far, in order."""
        return sorted(self.store.folder.glob("*/metrics.csv"), key=lambda f: f.stat().st_mtime_ns)

    def stage(self, name: str) -> list[pl.Callback]:
        return [CsvCurve(self.store.folder / name / "metrics.csv", self.grown)]

    def grown(self) -> None:
        """One row more has been written."""


class WandbRun(CsvLogger):
    """One W&B run: its id is the record's key, its group the experiment; stages are prefixes of its curves.

    Online with a key (`wandb login` or WANDB_API_KEY), offline without one or without a server. What counts are the CSV
    files: every attempt logs all they hold, and W&B drops the steps it has. So W&B has the whole curve even where an
    earlier attempt took what was not yet sent, or not yet on the disk, with it. Whatever W&B does, the run goes on.
    """

    def __init__(self, cfg: DictConfig, store: Store):
        super().__init__(cfg, store)
        self.mode = os.environ.get("WANDB_MODE", "online")
        self.run, self.sent, self.why = None, 0, f"WANDB_MODE is {self.mode}"
        if self.mode == "online" and not self._try(self._open):
            if self.why != NO_KEY:
                print(f"W&B: {self.why}; logging offline")
            self.mode = "offline"
        if self.run is None and self.mode != "disabled":
            self._try(self._open)

    def _try(self, what: Callable[..., None], *args: Any) -> bool:
        try:
            what(*args)
            return True
        except Exception as error:
            self.run, self.why = None, " ".join(str(error).split()) or type(error).__name__
            self._end_service()                                   # it may be dead, or hold on to the run
            return False

    def _end_service(self) -> None:
        import wandb

        def end() -> None:
            with suppress(Exception):
                wandb.teardown()

        service = Thread(target=end, daemon=True)                 # with a dead server it may never end
        service.start()
        service.join(max(self.cfg.logger.timeout, 60))

    def _open(self) -> None:
        import wandb

        cfg, online = self.cfg, self.mode == "online"
        if online:
            wandb.setup(wandb.Settings(silent=True))
            if not wandb.login(prompt=False, verify=False):       # to verify is to wait for the server, without a limit
                raise UserError(NO_KEY)
        self.store.folder.mkdir(parents=True, exist_ok=True)
        self.sent = 0
        self.run = wandb.init(
            project=cfg.logger.project, entity=cfg.logger.entity, id=self.store.key, reinit="create_new",
            # offline the folder on disk holds the whole curve: uploaded, it takes the place of what is there
            resume="allow" if online and not self.again else None,
            **names(cfg.method.name, cfg.model.name, cfg.dataset.name, cfg.recipe.name, cfg.seed, cfg.experiment,
                    *(cfg.logger.tags or [])),
            config=self.store.config, dir=str(self.store.folder), mode="online" if online else "offline",
            settings=wandb.Settings(silent=True, init_timeout=cfg.logger.timeout, finish_timeout=cfg.logger.timeout,
                                    finish_timeout_raises=True))
        self.folder = Path(self.run.dir).parent
        self._send()
        for old in self.store.folder.glob(f"wandb/offline-run-*-{self.store.key}"):
            if old != self.folder:                                # all it holds is in the new one
                shutil.rmtree(old, ignore_errors=True)

    def _send(self) -> None:
        rows = [row for file in self.files() for row in read(file)]
        for step, row in enumerate(rows[self.sent:], self.sent):
            self.run.log(row, step=step)
        self.sent = max(self.sent, len(rows))

    def grown(self) -> None:
        if self.run is not None and not self._try(self._send):
            print(f"W&B: {self.why}; the curves go on in {self.store.folder}/*/metrics.csv")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "run": None}                     # where several processes train, this one sends

    def close(self, record: dict | None = None, failed: bool = False) -> None:
        done = self.run is not None and self._try(self._finish, record, failed)
        if not done and self.mode != "disabled":                  # all of it again, to a folder on the disk
            self.mode = "offline"
            done = self._try(self._open) and self._try(self._finish, record, failed)
        if not done:
            print(f"W&B: {self.why}; the curves are in {self.store.folder}/*/metrics.csv")
        elif self.mode != "online":
            self._end_service()                                   # it writes the last lines now
            print(f"W&B logged offline, {self.why}; upload later with:  wandb sync {shlex.quote(str(self.folder))}")

    def _finish(self, record: dict | None, failed: bool) -> None:
        self._send()
        if record is not None:
            for step, row in enumerate(layers(record), self.sent):
                self.run.log(row, step=step)
            self.run.summary.update(numbers(record))
        self.run.finish(exit_code=int(failed))


def names(method: str, model: str, dataset: str, recipe: str, seed: int, row: str | None, *tags: str) -> dict[str, Any]:
    """What a run is called at W&B, beside its id, which is the key."""
    return {"name": f"{method}-{model}-{dataset}-{seed}", "group": row or f"{model}-{dataset}", "job_type": method,
            "tags": [method, model, dataset, recipe, *tags]}


def layers(record: dict) -> Iterator[dict[str, float]]:
    """A row per layer after those of the epochs: the nets of several runs are curves over `layer`."""
    for place, (before, after) in enumerate(record["widths"].values(), 1):
        yield {"layer": place, "widths/before": before, "widths/after": after, "widths/kept": 100 * after / before}


def numbers(record: dict) -> dict[str, Any]:
    """The summary that `reprune dashboard` compares: baseline/..., pruned/..., claim/..., drops in percent."""
    base, pruned, widths = record["baseline"], record["pruned"], record["widths"].values()
    flat = {f"{part}/{k}": v for part in ("baseline", "sparse", "pruned", "epochs", "seconds")
            for k, v in record.get(part, {}).items()}
    left = pruned.get("density", 100) / 100
    drops = {"params_drop": 100 * (1 - left * pruned["params"] / base["params"]),
             "macs_drop": 100 * (1 - pruned.get("macs_mean", pruned["macs"]) / base["macs"])}
    drops["filters_drop"] = 100 * (1 - sum(after for _, after in widths) / max(sum(before for before, _ in widths), 1))
    claim = {}
    with suppress(UserError):                                     # a bad claim: the tables tell
        stated = Claim.read(record["claim"]) if record.get("claim") else None
        claim = stated.model_dump(exclude_none=True) | {"delta": stated.step} if stated else {}
    return {**flat, **drops, "delta_top1": pruned["top1"] - base["top1"],
            "speedup": base["latency_ms"] / pruned["latency_ms"], "seconds/total": sum(record["seconds"].values()),
            "commit": record["env"].get("git"), "started": record["started"],
            **{f"claim/{k}": v for k, v in claim.items() if isinstance(v, int | float | str)}}
