"""Keys and places. A run's key is a hash of what determines its result; same key = same run."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

import reprune
from reprune.errors import UserError
from reprune.files import GO_ON, intact, leftovers, read_sealed, write_json, write_sealed

if TYPE_CHECKING:                       # torch is imported with the first net: a look at keys and places needs none
    from torch import nn

    Make = Callable[[Path], tuple[nn.Module, dict]]

# What a result does not depend on: where things lie (not in records either), how they are shown, what a run is called,
# where it runs.
PLACES = ("output_dir", "results_dir", "data_dir", "dataset.data_dir")
NOT_IN_KEY = (*PLACES, "dataset.workers", "logger", "force", "search", "claim", "experiment", "control", "measure",
              "model.name", "recipe.name", "recipe.paper_epochs", "trainer.accelerator", "trainer.devices",
              "trainer.enable_progress_bar", "trainer.strategy", "trainer.sync_batchnorm", "speed.graph")
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
    """A copy with some dotted names left out, and the mappings that this leaves empty.

    >>> without({"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": {"g": 4}}}, ("a.b", "d", "e.f.g", "x.y"))
    {'a': {'c': 2}}
    """
    config = copy.deepcopy(config)
    for name in names:
        drop(config, name.split("."))
    return config


def drop(node: dict, path: list[str]) -> None:
    if path[1:] and isinstance(node.get(path[0]), dict):
        drop(node[path[0]], path[1:])
        if node[path[0]]:
            return
    elif path[1:]:
        return
    node.pop(path[0], None)


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
        self.root = Path(cfg.output_dir)
        self.folder = self.root / self.key
        self.record_file = self.folder / "record.json"
        self.net_file = self.folder / "net.safetensors"
        self.published = Path(cfg.results_dir) / "runs" / f"{self.key}.json"

    def finished(self) -> dict | None:
        """The record of this very run, if it is there and whole."""
        return self._record(self.record_file)

    def is_published(self) -> bool:
        """Is the record among the results of the papers' rows, and whole?"""
        return self._record(self.published) is not None

    def _record(self, file: Path) -> dict | None:
        if not file.is_file():
            return None
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["status"] == "done" and record["key"] == self.key:
                return record
            told = "of another run"
        except (OSError, ValueError, TypeError, KeyError) as error:
            told = f"{type(error).__name__}: {error}"
        _tell(f"{file}: not the whole record of this run ({told}); it counts as missing and is made again")
        return None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process works on this run meanwhile; the lock of one that died is free."""
        with _locked(self.folder, f"run {self.key}"):
            for folder, name in ((self.folder / "stages", ""), (self.published.parent, self.published.name),
                                 (self.root / "failed", f"{self.key}.json")):
                _remove(leftovers(folder, name))
            yield

    def baseline(self, train: Make) -> tuple[nn.Module, dict]:
        """The unpruned net and what is known of it; trained by the first run that asks, found again by the others.

        train(unfinished): as for `stage`."""
        folder = self.root / "baselines" / baseline_key(self.config)
        with _locked(folder, f"baseline {folder.name}"):
            return _remembered(folder / "net.safetensors", folder / "baseline.json", folder / "unfinished.ckpt", train)

    def stage(self, name: str, make: Make) -> tuple[nn.Module, dict]:
        """The net that a stage of this run ends with, and what is known of it: made once, found again after a break.

        make(unfinished): -> net, facts that JSON can hold; `unfinished` is where it may leave a checkpoint while it
        works, and finds the one that an earlier attempt has left."""
        folder = self.folder / "stages"
        return _remembered(folder / f"{name}.safetensors", folder / f"{name}.json", folder / f"{name}.ckpt", make)

    def facts(self, name: str, make: Callable[[], Any]) -> Any:
        """As `stage`, without a net."""
        file = self.folder / "stages" / f"{name}.json"
        if file.is_file():
            try:
                return read_sealed(file)
            except (OSError, ValueError) as error:
                _tell(f"{file}: cannot be read, made again ({error})")
        write_sealed(file, make())
        return read_sealed(file)

    def publish(self, record: dict) -> None:
        """Among the results of the papers' rows."""
        write_json(self.published, record)

    def serve(self, record: dict, row: str | None) -> dict:
        """The record of this finished run, for a row of a paper: published under its name if it is not yet."""
        if (self.folder / "stages").exists():
            self._tidy()
        if row and not self.is_published():                       # it ran under another name, or elsewhere
            record = {**record, "experiment": row, "claim": self.config["claim"]}
            self.publish(record)
        return record

    def _tidy(self) -> None:
        """Removes what a finished run has no use for: an attempt killed right after its record leaves its stages."""
        with suppress(Timeout, UserError), _locked(self.folder, f"run {self.key}", wait=False):   # held: not ours now
            shutil.rmtree(self.folder / "stages", ignore_errors=True)

    def finish(self, record: dict, net: nn.Module) -> None:
        reprune.save(net, self.net_file)
        write_json(self.record_file, record)                      # last: its presence = finished
        shutil.rmtree(self.folder / "stages", ignore_errors=True)


@contextmanager
def _locked(folder: Path, what: str, wait: bool = True) -> Iterator[None]:
    """One process at a time in `folder`, also of several machines that share it: flock, which Linux carries over NFS
    (not every cluster's file system has it switched on). The system frees the lock of a process that dies; the file
    `lock` stays and means nothing by itself. Raises Timeout if it is taken and wait=False."""
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise
            print(f"{what}: another process is at it, waiting", flush=True)
            lock.acquire()
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        raise UserError(f"{lock.lock_file}: cannot be locked ({getattr(error, 'strerror', None) or error}): {GO_ON}"
                        ) from error
    try:
        _remove(leftovers(folder))
        yield
    finally:
        lock.release()


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


@cache
def _tell(line: str) -> None:
    """Once per process: a damaged file is looked at more than once."""
    print(line, flush=True)


def _remembered(net_file: Path, facts_file: Path, unfinished: Path, make: Make) -> tuple[nn.Module, dict]:
    """What `make` made, from the files it was saved to: the same for whoever made it and whoever finds it."""
    if facts_file.is_file():
        try:
            facts = read_sealed(facts_file, net_file)
            net = reprune.load(net_file)
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)                # of one that was killed right after
            return net, facts
        except (UserError, OSError, ValueError) as error:
            print(f"{net_file}: cannot be read, made again ({error})")
    if unfinished.is_file() and not intact(unfinished):
        print(f"{unfinished}: cannot be read, its stage starts again")
        unfinished.unlink()
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    net, facts = make(unfinished)
    reprune.save(net, net_file)
    write_sealed(facts_file, facts, net_file)                     # last: its presence = finished
    unfinished.unlink(missing_ok=True)
    return reprune.load(net_file), read_sealed(facts_file, net_file)
