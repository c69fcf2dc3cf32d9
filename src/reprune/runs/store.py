"""Keys and places. A run's key is a hash of what determines its result; same key = same run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

import reprune
from reprune.errors import UserError
from reprune.files import abandoned, leftovers, read_sealed, write_json, write_sealed
from reprune.runs.stages import Stage, locked, or_again

if TYPE_CHECKING:                       # torch is imported with the first net: a look at keys and places needs none
    from torch import nn

PLACES = ("output_dir", "results_dir", "data_dir", "dataset.data_dir")         # where things lie: not in records either
HERE = (*PLACES, "dataset.workers", "logger", "force", "search", "trainer.enable_progress_bar")   # of no use elsewhere
# What a result does not depend on: besides, what a run is called, and where it runs.
NOT_IN_KEY = (*HERE, "claim", "control", "experiment", "measure", "model.name", "recipe.name", "recipe.paper_epochs",
              "trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.sync_batchnorm", "speed.graph")
# Options that came later, and the value that means what runs did before: with it, a run has the key it always had.
NEUTRAL = {"method.allocation.multiple": 1, "speed.compile": False}


def resolved(cfg: DictConfig) -> dict:
    """The whole config as plain data, without places; `model.weights` is the file's name and its content's hash."""
    config = OmegaConf.to_container(cfg, resolve=True)
    weights = config["model"].get("weights")
    if weights:
        path = Path(weights)
        if not path.is_file():
            raise UserError(f"model.weights: no file at {path.absolute()}")
        now = path.stat()
        config["model"]["weights"] = f"{path.name} sha256:{_sha256(path, now.st_ino, now.st_mtime_ns, now.st_size)}"
    return without(config, PLACES)


@cache
def _sha256(path: Path, *_: int) -> str:
    """Of the content; read once per process as long as the file stays the same: many cells of a sweep ask."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def key_of(config: dict) -> str:
    """16 hex digits that name a run; two configs that must give the same result have the same key.

    >>> a = {"model": {"depth": 20}, "seed": 0, "output_dir": "here"}
    >>> key_of(a) == key_of({**a, "output_dir": "there"}), key_of(a) == key_of({**a, "seed": 1})
    (True, False)
    >>> key_of(a) == key_of({**a, "speed": {"compile": False, "graph": True}})    # an option that came later, unused
    True
    """
    config = sortable(without(without(config, NOT_IN_KEY), unused(config)))
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def unused(config: dict) -> list[str]:
    """The names of NEUTRAL that a config has with the value that means nothing new.

    >>> unused({"method": {"allocation": {"multiple": 8}}, "speed": {"compile": False}})
    ['speed.compile']
    """
    return [name for name, value in NEUTRAL.items() if get(config, name) == value]


def get(node: Any, name: str) -> Any:
    """The value of a dotted name; ... where there is none."""
    for part in name.split("."):
        node = node.get(part, ...) if isinstance(node, dict) else ...
    return node


def without(config: dict, names: Iterable[str]) -> dict:
    """With some dotted names left out, and the mappings that this leaves empty.

    >>> without({"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": {"g": 4}}}, ("a.b", "d", "e.f.g", "x.y"))
    {'a': {'c': 2}}
    """
    below: dict[str, list[str]] = {}
    for name in names:
        below.setdefault(name.partition(".")[0], []).append(name.partition(".")[2])
    kept = {key: without(value, below[key]) if key in below and isinstance(value, dict) else value
            for key, value in config.items() if "" not in below.get(key, ())}
    return {key: value for key, value in kept.items() if value != {} or key not in below}


def sortable(node: Any) -> Any:
    """With the keys of a mapping as texts where they are of several kinds: {1: 0.5, "layer2": 0.2}."""
    if isinstance(node, list):
        return [sortable(item) for item in node]
    if not isinstance(node, dict):
        return node
    mixed = len({type(key) for key in node}) > 1
    return {json.dumps(key) if mixed and not isinstance(key, str) else key: sortable(value)
            for key, value in node.items()}


def baseline_key(config: dict) -> str:
    """The part of the key that the unpruned net depends on: shared by every method of a sweep."""
    later = ("sparse", "between", "recover", "test_every_epoch")
    recipe = {k: v for k, v in config["recipe"].items() if k not in later}
    return key_of({"model": config["model"], "dataset": config["dataset"], "recipe": recipe, "seed": config["seed"],
                   "precision": config["trainer"]["precision"], "speed": config.get("speed", {}), "baseline": True})


class Store:
    """The folder of one run, and the baselines that runs share."""

    def __init__(self, cfg: DictConfig):
        self.config = resolved(cfg)
        self.key = key_of(self.config)
        self.control = self.config.get("control")
        self.claim = None if self.control else self.config.get("claim")       # a control stands beside a claim
        self.root = Path(cfg.output_dir)
        self.folder = self.root / self.key
        self.stages = self.folder / "stages"
        self.record_file = self.folder / "record.json"
        self.published = Path(cfg.results_dir) / "runs" / f"{self.key}.json"

    def finished(self) -> dict | None:
        """The record of this very run, if it is there and whole."""
        return self._record(self.record_file)

    def is_published(self) -> bool:
        """Is the record among the results of the papers' rows, and whole?"""
        return self._record(self.published) is not None

    def _record(self, file: Path) -> dict | None:
        with or_again(file, "not the whole record of this run"):
            record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
            whole = {"status": "done", "key": self.key}.items()
            if record is not None and not (isinstance(record, dict) and whole <= record.items()):
                raise ValueError("of another one, or of none")
            return record

    def alone(self) -> AbstractContextManager[None]:
        """No other process works on this run meanwhile; the lock of one that died is free."""
        return locked(self.folder, f"run {self.key}", leftovers(self.stages),
                       abandoned(self.published.parent, self.published.name),
                       leftovers(self.root / "failed", f"{self.key}.json"))

    @contextmanager
    def baseline(self) -> Iterator[Stage]:
        """The unpruned net, for one process at a time: made by the first run that asks, found by the others."""
        folder = self.root / "baselines" / baseline_key(self.config)
        with locked(folder, f"baseline {folder.name}"):
            yield Stage(folder / "net.safetensors", folder / "baseline.json", folder / "unfinished.ckpt")

    def stage(self, name: str) -> Stage:
        """One of this run's own: made once, found by an attempt that goes on after a break."""
        self.stages.mkdir(parents=True, exist_ok=True)
        return Stage(*(self.stages / f"{name}.{suffix}" for suffix in ("safetensors", "json", "ckpt")))

    def noted(self, name: str) -> Any:
        """What an earlier attempt has noted; None: nothing."""
        file = self.stages / f"{name}.json"
        with or_again(file):
            return read_sealed(file) if file.is_file() else None

    def note(self, name: str, facts: Any) -> Any:
        """-> them, as `noted` will have them"""
        write_sealed(self.stages / f"{name}.json", facts)
        return read_sealed(self.stages / f"{name}.json")

    def serve(self, record: dict, row: str | None) -> dict:
        """The record of this finished run, for a row of a paper: published under its name if it is not yet."""
        if self.stages.exists():                                  # it was killed right after its record
            with suppress(OSError, NotImplementedError), FileLock(self.folder / "lock", timeout=0):   # held: not ours
                shutil.rmtree(self.stages, ignore_errors=True)
        if row and not self.is_published():                       # it ran under another name, or elsewhere
            record = {**record, "experiment": row, "control": self.control, "claim": self.claim}
            write_json(self.published, record)
        return record

    def finish(self, record: dict, net: nn.Module) -> None:
        """Writes net and record, also among the results if it is a row of a paper."""
        if record["experiment"]:
            write_json(self.published, record)
        reprune.save(net, self.folder / "net.safetensors")
        write_json(self.record_file, record)                      # last: its presence = finished
        shutil.rmtree(self.stages, ignore_errors=True)
