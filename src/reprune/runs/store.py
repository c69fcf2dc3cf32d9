"""Keys and places. A run's key is a hash of what determines its result; same key = same run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

import reprune
import reprune.runs.milestones  # what recipes are written with
from reprune.errors import UserError
from reprune.files import abandoned, leftovers, read_sealed, write_json, write_sealed
from reprune.runs.content import content
from reprune.runs.fingerprint import changed, fingerprint
from reprune.runs.nested import get, sortable, without
from reprune.runs.stages import Stage, locked, or_again, read_facts, tell, write_facts
from reprune.schema import Record

if TYPE_CHECKING:                       # torch is imported with the first net: a look at keys and places needs none
    from torch import nn

PLACES = ("output_dir", "results_dir", "data_dir", "dataset.data_dir")         # where things lie: not in records either
HERE = (*PLACES, "dataset.workers", "logger", "force", "fail_fast", "search",
        "trainer.enable_progress_bar")   # of no use elsewhere
# What a result does not depend on: besides, what a run is called, and where it runs.
NOT_IN_KEY = (*HERE, "claim", "control", "dataset.complete", "dataset.unreadable", "experiment", "measure",
              "recipe.name", "recipe.paper_epochs", "threads", "trainer.accelerator", "speed.graph")
# Options that came later, and the value that means what runs did before: with it, a run has the key it always had.
NEUTRAL = {"dataset.test": "val", "method.allocation.multiple": 1, "method.penalties.hgsr.scale": "sum",
           "method.prunes": True, "method.rounds.batches": None, "method.silence_gradients": False,
           "method.silence_layers": False, "speed.compile": False, "trainer.accumulate_grad_batches": 1,
           "trainer.devices": 1}
PRECISIONS = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
SEVERAL = ("trainer.devices", "trainer.strategy", "trainer.sync_batchnorm")    # of no effect where there is one device


def plain(cfg: DictConfig) -> dict:
    """As plain data; the precision by its full name, of those that Lightning knows."""
    config = OmegaConf.to_container(cfg, resolve=True)
    if (precision := get(config, "trainer.precision")) is not ...:
        config["trainer"]["precision"] = PRECISIONS.get(str(precision), precision)
    return config


def resolved(cfg: DictConfig) -> dict:
    """The whole config as plain data, without places; `model.weights` is the file's name and its content's hash, and
    `dataset.content` stands for the images of a dataset of folders."""
    config = plain(cfg)
    weights = config["model"].get("weights")
    if weights:
        path = Path(weights)
        if not path.is_file() and not path.suffix:                # published ones, by their name
            from reprune.models import weights_file  # seconds: torch

            path = weights_file(config["model"])
        if not path.is_file():
            raise UserError(f"model.weights: no file at {path.absolute()}")
        now = path.stat()
        config["model"]["weights"] = f"{path.name} sha256:{_sha256(path, now.st_ino, now.st_mtime_ns, now.st_size)}"
    if images := content(config["dataset"], Path(config["output_dir"])):
        config["dataset"]["content"] = images
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
    return digest(sortable(counted(config)))


def digest(plain: dict) -> str:
    """Of what is `counted`, whatever the order of its names."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def counted(config: dict) -> dict:
    """What determines the result. Of a file of weights that is what it holds, and not what it is called.

    >>> counted({"model": {"weights": "a.th sha256:12"}, "force": True})
    {'model': {'weights': 'sha256:12'}}
    """
    config = without(config, (*NOT_IN_KEY, *unused(config)))
    if not isinstance(weights := get(config, "model.weights"), str):
        return config
    name, mark, digits = weights.rpartition("sha256:")
    return {**config, "model": {**config["model"], "weights": mark + digits}}


def unused(config: dict) -> list[str]:
    """The names of NEUTRAL that a config has with the value that means nothing new; SEVERAL, where there is one device.

    >>> unused({"method": {"allocation": {"multiple": 8}}, "speed": {"compile": False}, "trainer": {"devices": 2}})
    ['speed.compile']
    """
    devices = get(config, "trainer.devices")
    one = devices in (..., 1, "1") or isinstance(devices, list) and len(devices) == 1
    return [*(name for name, value in NEUTRAL.items() if get(config, name) == value), *SEVERAL * one]


def baseline_key(config: dict) -> str:
    """The part of the key that the unpruned net depends on: shared by every method of a sweep."""
    later = ("sparse", "between", "recover", "test_every_epoch")
    recipe = {k: v for k, v in config["recipe"].items() if k not in later}
    return key_of({"model": config["model"], "dataset": config["dataset"], "recipe": recipe, "seed": config["seed"],
                   "trainer": config["trainer"], "speed": config.get("speed", {}), "baseline": True})


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
        self.record_file, self.net_file, self.seal_file = (
            self.folder / name for name in ("record.json", "net.safetensors", "seal.json"))
        self.published = Path(cfg.results_dir) / "runs" / f"{self.key}.json"

    @cached_property
    def code(self) -> dict[str, str]:
        """That would make this run now: of its method, its data and its model."""
        return fingerprint(self.config)

    @property
    def baseline_code(self) -> dict[str, str]:
        """The same, of its baseline: no method has a part in it."""
        return {part: digits for part, digits in self.code.items() if part != "method"}

    def finished(self) -> dict | None:
        """The record of this very run, if it is there, whole, and of today's code; a line says why what is there does
        not count."""
        record, why = self.look()
        if why:
            with suppress(OSError):
                tell(f"{why}, made again", self.folder, *self.code.values(), self.record_file.stat().st_mtime_ns)
        return None if why else record

    def look(self) -> tuple[dict | None, str]:
        """The record, if it is there and whole, and why it does not count as finished; "": it does, or is not there."""
        if not self.record_file.is_file():
            return None, ""
        try:
            if read_sealed(self.seal_file, self.record_file, self.net_file) != self.key:
                raise ValueError("the seal is that of another one")
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return None, f"{self.record_file}: not the whole record of this run ({error})"
        parts = changed(record.get("code"), self.code)
        return record, f"{self.key}: made with other code ({parts})" if parts else ""

    def publication(self) -> dict | None:
        """The record of this run among the results of the papers' rows, of whatever code, if it is whole."""
        with or_again(self.published, "not the whole record of this run"):
            if not self.published.is_file():
                return None
            text = self.published.read_bytes()
            if Record.read(text).key != self.key:
                raise ValueError("of another one")
            return json.loads(text)

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
            yield Stage(*(folder / name for name in ("net.safetensors", "baseline.json", "unfinished.ckpt")),
                        folder.name, self.baseline_code)

    def stage(self, name: str) -> Stage:
        """One of this run's own: made once, found by an attempt that goes on after a break."""
        self.stages.mkdir(parents=True, exist_ok=True)
        return Stage(*(self.stages / f"{name}.{suffix}" for suffix in ("safetensors", "json", "ckpt")), self.key,
                     self.code)

    def noted(self, name: str) -> Any:
        """What an earlier attempt has noted; None: nothing."""
        file = self.stages / f"{name}.json"
        with or_again(file):
            return read_facts(file, self.key, self.code) if file.is_file() else None

    def note(self, name: str, facts: Any) -> Any:
        """-> them, as `noted` will have them"""
        write_facts(self.stages / f"{name}.json", facts, self.code)
        return self.noted(name)

    def serve(self, record: dict, row: str | None) -> dict:
        """The record of this finished run, for a row of a paper: published under its name if it is not yet."""
        if self.stages.exists():                                  # it was killed right after its record
            with suppress(OSError, NotImplementedError), FileLock(self.folder / "lock", timeout=0):   # held: not ours
                shutil.rmtree(self.stages, ignore_errors=True)
        there = self.publication() if row else None
        if row and (there is None or there.get("code") != record["code"]):        # it ran under no name, or elsewhere
            record = {**record, "experiment": row, "control": self.control, "claim": self.claim}
            write_json(self.published, record)
        return record

    def finish(self, record: dict, net: nn.Module) -> None:
        """Writes net and record, also among the results if it is a row of a paper; a record of other code stays."""
        self._set_aside()
        if record["experiment"]:
            write_json(self.published, record)
        reprune.save(net, self.net_file)
        self.write(record)
        shutil.rmtree(self.stages, ignore_errors=True)

    def write(self, record: dict) -> None:
        """The record beside its net."""
        write_json(self.record_file, record)
        write_sealed(self.seal_file, self.key, self.record_file, self.net_file)   # last: its presence = finished

    def _set_aside(self) -> None:
        try:
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if isinstance(record, dict) and changed(code := record.get("code"), self.code):
            digits = "-".join(re.sub(r"\W", "", str(part))[:4] for part in (code or {}).values()) or "unknown"
            write_json(self.folder / f"superseded-{digits}.json", {**record, "status": "superseded"})
