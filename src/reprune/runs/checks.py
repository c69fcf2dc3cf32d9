"""What a run would only stumble over once it has begun, or not even then: told before anything trains."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from reprune.errors import UserError
from reprune.files import writable
from reprune.runs.store import Store


def check(cfg: DictConfig) -> None:
    """Raises UserError for a seed that is none, a net that does not fit the images, a place that takes no record."""
    if isinstance(cfg.seed, bool) or not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise UserError(f"seed must be a whole number from 0 up, not {cfg.seed!r}")
    outputs, classes = cfg.model.get("classes"), cfg.dataset.get("classes")
    if isinstance(classes, int) and not (outputs is None or isinstance(outputs, int) and outputs >= classes):
        raise UserError(f"model.classes must be a whole number from {classes} up, the classes of dataset "
                        f"{cfg.dataset.get('name')!r}, not {outputs!r}")
    if cfg.experiment and (cfg.force or Store(cfg).finished() is None):
        writable("results_dir", Path(cfg.results_dir))
