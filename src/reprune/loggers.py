"""Where curves go: CSV files beside the record, Weights & Biases, or nowhere."""

from __future__ import annotations

import os
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from reprune.store import Store


def open_logger(cfg: DictConfig, store: Store) -> NoLogger:
    return {"csv": CsvLogger, "wandb": WandbRun, "none": NoLogger}[cfg.logger.kind](cfg, store)


class NoLogger:
    """Logs nothing; also the interface of the others."""

    def __init__(self, cfg: DictConfig, store: Store):
        self.cfg, self.store = cfg, store

    def stage(self, name: str) -> Logger | bool:
        """What Lightning logs one stage to."""
        return False

    def close(self, record: dict | None = None, failed: bool = False) -> None:
        """After the run, with its record, or with failed=True."""


class CsvLogger(NoLogger):
    """<output_dir>/<key>/<stage>/metrics.csv"""

    def stage(self, name: str) -> Logger | bool:
        return CSVLogger(str(self.store.folder), name, version="")


class WandbRun(NoLogger):
    """One W&B run: its id is the record's key, its group the experiment; stages are prefixes of its curves.

    Online with a key (`wandb login` or WANDB_API_KEY), offline without one, and then it says how to upload later.
    """

    def __init__(self, cfg: DictConfig, store: Store):
        import wandb

        super().__init__(cfg, store)
        offline = os.environ.get("WANDB_MODE") == "offline" or not wandb.login(prompt=False)
        self.run = wandb.init(
            project=cfg.logger.project, entity=cfg.logger.entity, id=store.key, resume="allow",
            name=f"{cfg.method.name}-{cfg.model.name}-{cfg.dataset.name}-{cfg.seed}",
            group=cfg.experiment or f"{cfg.model.name}-{cfg.dataset.name}", job_type=cfg.method.name,
            tags=[cfg.method.name, cfg.model.name, cfg.dataset.name, cfg.recipe.name, *(cfg.logger.tags or [])],
            config=store.config, dir=str(_made(store.folder)), mode="offline" if offline else "online",
            settings=wandb.Settings(silent=True))
        self.offline = offline

    def stage(self, name: str) -> Logger | bool:
        return WandbLogger(experiment=self.run)

    def close(self, record: dict | None = None, failed: bool = False) -> None:
        if record is not None:
            self.run.summary.update(_numbers(record))
        folder = os.path.dirname(self.run.dir)
        self.run.finish(exit_code=int(failed))
        if self.offline:
            print(f"W&B logged offline, no API key was found; upload later with:  wandb sync {folder}")


def _numbers(record: dict) -> dict[str, Any]:
    """The summary a dashboard compares: baseline/..., pruned/..., drops in percent."""
    base, pruned = record["baseline"], record["pruned"]
    flat = {f"{part}/{k}": v for part in ("baseline", "pruned", "epochs", "seconds") for k, v in record[part].items()}
    drops = {f"{k}_drop": 100 * (1 - pruned[k] / base[k]) for k in ("params", "macs")}
    return {**flat, **drops, "delta_top1": pruned["top1"] - base["top1"],
            "speedup": base["latency_ms"] / pruned["latency_ms"]}


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder
