"""The command that repeats a run, worked out from its record alone, and held against the record's key."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reprune.errors import UserError
from reprune.results.rows import GROUPS
from reprune.runs.compose import Composer, outside_of_jobs
from reprune.runs.store import NEUTRAL, NOT_IN_KEY, get, key_of, without

# A result does not depend on them, and yet a repeated run takes them over.
TAKEN = ("measure", "trainer.devices", "trainer.strategy", "trainer.sync_batchnorm")
LEFT = tuple(name for name in NOT_IN_KEY if name not in TAKEN)
GONE = object()                         # in place of a value that is not there


@dataclass
class Repeat:
    """overrides: of run.py; key: of the run they make, given the same weights; notes: what to know besides."""

    overrides: list[str]
    key: str
    wanted: str
    notes: list[str]

    @property
    def exact(self) -> bool:
        return self.key == self.wanted

    @property
    def command(self) -> str:
        return shlex.join(["python", "run.py", *self.overrides])


class Repeater:
    """repeater(record) -> its command, with the configs below `root`."""

    def __init__(self, root: Path):
        if not (root / "conf" / "config.yaml").is_file():
            raise UserError(f"no conf/config.yaml in {root.absolute()}: start this where run.py lies")
        self.root = root.absolute()
        os.environ.setdefault("REPRUNE_ROOT", str(self.root))
        with initialize_config_dir(str(self.root / "conf"), version_base="1.3"):
            self.loader: ConfigLoaderImpl = GlobalHydra.instance().config_loader()
            self.composer = Composer(self.loader)
        self.composed, self.plain = cache(self._composed), cache(self._plain)

    def __call__(self, record: dict) -> Repeat:
        """Raises UserError where no command composes."""
        want = without(record["config"], LEFT)
        chosen, notes = self._choose(record, want)
        weights = str((want["model"] or {}).get("weights") or "")
        if weights:
            name, _, digest = weights.partition(" sha256:")
            chosen.append(f"model.weights={literal(name)}")
            notes.append(f"model.weights: the file {name} whose sha256 begins with {digest}")
        overrides = chosen
        for written in (True, False):                             # first what others follow, then what is still off
            overrides = [*overrides, *self._leaves(overrides, want, written)]
        if left := [name for name, *_ in differences(*self._pair(overrides, want))]:
            notes.append(f"not reproduced: {', '.join(left)}")
        notes += [f"{name}: {why}, so the run will not start here; see the commit it was made with"
                  for name, why in self._refused(overrides)]
        return Repeat(overrides, key_of(self._config(overrides, want)), record["key"], notes)

    # ------------------------------------------------------------ which files of conf/ and experiments/

    def _choose(self, record: dict, want: dict) -> tuple[list[str], list[str]]:
        """-> the row or the groups, with the choices below them; notes"""
        row, notes = record.get("experiment"), []
        chosen = [f"experiments={row}"] if row else []
        if row and not (self.root / "experiments" / f"{row}.yaml").is_file():
            notes.append(f"experiments/{row}.yaml is not there any more: the run is repeated without its claim")
            chosen = []
        now = self.composed(tuple(chosen))
        for group in GROUPS:
            if now[group].get("name") != record[group] or not row:
                if record[group] not in self._options(group):
                    raise UserError(f"{record['key']}: conf/{group}/{record[group]}.yaml is not there any more; the "
                                    f"commit {record['env'].get('git')} has it")
                chosen.append(f"{group}={record[group]}")
        below = sorted(self.loader.list_groups("method"), reverse=True)       # selection first: allocation refers to it
        for group in ["trainer", *(f"method/{name}" for name in below)]:
            chosen = self._closest(chosen, group, want)
        return chosen, notes

    def _closest(self, chosen: list[str], group: str, want: dict) -> list[str]:
        """With the choice of `group` that leaves the fewest values to set, where the present one has other names."""
        def off(overrides: list[str]) -> int:
            return sum(1 for _ in differences(*self._pair(overrides, want)))

        part = group.split("/")[0]
        have, wanted = (shape(config[part]) for config in self._pair(chosen, want))
        if have == wanted:
            return chosen
        tried = {off(chosen): chosen}
        for option in self._options(group):
            try:
                tried.setdefault(off([*chosen, f"{group}={option}"]), [*chosen, f"{group}={option}"])
            except UserError:                                     # this method has no such group
                continue
        return tried[min(tried)]

    def _options(self, group: str) -> list[str]:
        return self.loader.get_group_options(group, ObjectType.CONFIG)

    # ------------------------------------------------------------ which values

    def _leaves(self, overrides: list[str], want: dict, written: bool) -> list[str]:
        """written: only values that stand in a file as such, not as ${...}: these may follow."""
        cfg, found = self.composed(tuple(overrides)), []
        for name, have, value in differences(*self._pair(overrides, want)):
            if value is GONE:                                     # Hydra removes no null
                found += [*[f"{name}=0"] * (have is None), f"~{name}"] * (not written)
            elif have is GONE:
                found += [f"+{name}={literal(value)}"] * (not written)
            elif isinstance(have, dict) and isinstance(value, dict):          # which Hydra merges
                found += [*[f"~{name}"] * bool(have), f"+{name}={literal(value)}"] * (not written)
            elif not (written and "${" in str(raw(cfg, name))):
                found.append(f"{name}={literal(value)}")
        return found

    def _refused(self, overrides: list[str]) -> Iterator[tuple[str, str]]:
        """Names that had to be added and that the class they are for does not take: the run would not start."""
        for name in [o[1:].partition("=")[0] for o in overrides if o.startswith("+")]:
            path, _, last = name.rpartition(".")
            target = OmegaConf.select(self.composed(tuple(overrides)), f"{path}._target_" if path else "_target_")
            if target is None or last == "_target_":
                continue
            try:
                taken = inspect.signature(get_object(target)).parameters
            except Exception:                                     # whatever importing it raises
                yield name, f"{target} cannot be imported"
                continue
            if last not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
                yield name, f"{target} does not take it any more"

    def _composed(self, overrides: tuple[str, ...]) -> DictConfig:
        try:
            return self.composer(overrides)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UserError(f"{' '.join(overrides)}: does not compose ({' '.join(str(error).split())})") from error

    def _plain(self, overrides: tuple[str, ...]) -> dict:
        with outside_of_jobs():
            return without(OmegaConf.to_container(self.composed(overrides), resolve=True), LEFT)

    def _pair(self, overrides: list[str], want: dict) -> tuple[dict, dict]:
        """-> what the overrides make, what is wanted; without the options that neither uses: a record from before there
        were any does not have them."""
        have = self._config(overrides, want)
        names = [name for name, value in NEUTRAL.items() if all(get(c, name) in (..., value) for c in (have, want))]
        return without(have, names), without(want, names)

    def _config(self, overrides: list[str], want: dict) -> dict:
        """As its record will hold it. The weights are the wanted ones: which file has them here is not known."""
        config = self.plain(tuple(overrides))
        if config["model"].get("weights"):
            config = {**config, "model": {**config["model"], "weights": want["model"]["weights"]}}
        return config


def differences(have: Any, want: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """-> (dotted name, value now, value wanted) of every leaf that differs; GONE where there is none.

    >>> list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}))
    [('a.c', 2, 3)]
    """
    if isinstance(have, dict) and isinstance(want, dict) and plain_keys(have) and plain_keys(want):
        for key in dict.fromkeys([*have, *want]):
            yield from differences(have.get(key, GONE), want.get(key, GONE), f"{name}{'.' * bool(name)}{key}")
    elif json.dumps(have, default=id) != json.dumps(want, default=id):        # int keys are texts in a record
        yield name, have, want


def plain_keys(node: dict) -> bool:
    """Can all be part of a dotted name? (rates: {1: 0.5} is one value)"""
    return all(re.fullmatch(r"[A-Za-z_][\w-]*", str(key)) for key in node)


def raw(cfg: DictConfig, name: str) -> Any:
    """The value as it is written, ${...} not resolved."""
    *path, last = name.split(".")
    for part in path:
        cfg = cfg[part]
    return cfg._get_node(last)._value()


def shape(node: Any, name: str = "") -> set[tuple[str, str]]:
    """Which names there are, and which class stands where."""
    if not isinstance(node, dict) or not plain_keys(node):
        return {(name, "")}
    return {(name, str(node.get("_target_")))}.union(*(shape(value, f"{name}.{key}") for key, value in node.items()))


def literal(value: Any) -> str:
    """As Hydra's command line reads it.

    >>> print(literal({"1": 0.5, "layer1": [None, True, "a b", "1e3"]}))
    {1:0.5,layer1:[null,true,'a b','1e3']}
    """
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(literal, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    number = re.fullmatch(r"[-+.\d][\d_]*\.?[\d_]*(e[-+]?\d+)?|[-+]?(inf|nan)", value, re.I)
    if re.fullmatch(r"[\w./+-]+", value) and value.lower() not in ("null", "true", "false") and not number:
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
