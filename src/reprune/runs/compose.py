"""Overrides and configs: configs of many cells at a fraction of Hydra's time for each, and equal to what Hydra makes of
the same overrides; the overrides that a job was given."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from reprune.runs.control import settle
from reprune.runs.places import additions, home
from reprune.runs.store import HERE


class Composer:
    """composer(["method=l1", "seed=1"]) -> the config that run.py's main passes on, not resolved.

    Hydra composes once per combination of choices from the config groups; plain values are then set on a copy, by
    Hydra's own function and in the order given, as Hydra does it. Every override is parsed once. Raises what Hydra
    raises, ConfigCompositionException where a job would see another config than this process does, and UserError for a
    control that its row does not have.

    fixed: overrides that all cells share, before their own (Hydra keeps those of hydra.* apart).
    """

    def __init__(self, loader: ConfigLoaderImpl, config_name: str = "config", fixed: Sequence[str] = ()):
        self.loader, self.config_name, self.fixed = loader, config_name, list(fixed)
        self.parser = OverridesParser.create()
        _, self.repository = loader._parse_overrides_and_create_caching_repo(config_name, self.fixed)
        self.parsed: dict[str, tuple[Override, bool]] = {}
        self.bases: dict[tuple[str, ...], tuple[DictConfig, str | None]] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        parts = [self._parse(text) for text in overrides]
        chosen = tuple(text for text, (_, plain) in zip(overrides, parts, strict=True) if not plain)
        if chosen not in self.bases:
            self.bases[chosen] = self._compose(chosen)
        base, row = self.bases[chosen]
        cfg = copy.deepcopy(base)
        ConfigLoaderImpl._apply_overrides_to_config([override for override, plain in parts if plain], cfg)
        settle(cfg, row)
        return cfg

    def _parse(self, text: str) -> tuple[Override, bool]:
        """-> the override; is it a plain value, which no choice depends on? (The rule of hydra's defaults_list.)"""
        if text not in self.parsed:
            (override,) = self.parser.parse_overrides([text])
            shaping = (override.is_hydra_override() or override.is_sweep_override() or
                       self.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict))
            self.parsed[text] = override, not shaping
        return self.parsed[text]

    def _compose(self, chosen: tuple[str, ...]) -> tuple[DictConfig, str | None]:
        """-> config without hydra's part, row of a paper"""
        cfg = self.loader.load_configuration(self.config_name, [*self.fixed, *chosen], RunMode.RUN)
        if cfg.hydra.job.env_set or cfg.hydra.job.chdir:
            raise ConfigCompositionException("hydra.job.env_set and hydra.job.chdir act in the job alone")
        row = cfg.hydra.runtime.choices.get("experiments")
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg, row


class Remembering(ConfigRepository):
    """Hydra's files of configs, each read once for many configs: most of the time goes into YAML."""

    def __init__(self, found: ConfigRepository):
        self.sources, self.known = found.sources, {}

    def __deepcopy__(self, memo: dict) -> Remembering:            # every composing copies it
        return self

    def load_config(self, config_path: str) -> Any:
        if config_path not in self.known:
            self.known[config_path] = super().load_config(config_path)
        return copy.deepcopy(self.known[config_path])             # merged into what it becomes a part of


@contextmanager
def composing(root: Path) -> Iterator[Composer]:
    """Makes the configs that can be run in a folder, outside of its command and its jobs."""
    place, before = home(root), os.environ.get("REPRUNE_ROOT")
    os.environ["REPRUNE_ROOT"] = str(place)                       # where conf/config.yaml finds experiments/
    try:
        with outside_of_jobs(), initialize_config_dir(str(place / "conf"), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            loader.repository = Remembering(loader.repository)
            yield Composer(loader, fixed=additions(root))
    finally:
        os.environ.pop("REPRUNE_ROOT")
        if before is not None:
            os.environ["REPRUNE_ROOT"] = before


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """${hydra:...} has another value in every job: here it is an error."""
    current = HydraConfig.instance()
    before, current.cfg = current.cfg, None
    try:
        yield
    finally:
        current.cfg = before


def typed() -> list[str] | None:
    """The overrides that this job of Hydra was given, for its record; None outside of jobs."""
    return portable(OmegaConf.to_container(HydraConfig.get().overrides.task)) if HydraConfig.initialized() else None


def portable(overrides: list[str]) -> list[str]:
    """Without what no other machine can use: HERE, and the folder of `model.weights`. The rest is as it was typed.

    >>> portable(["method=l1", "+data_dir=/a", "model.weights='/b/a net.th'", "dataset={limit:9,data_dir:/c}"])
    ['method=l1', "model.weights='a net.th'", 'dataset={limit:9}']
    """
    kept = []
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
        value = _portable(override.key_or_group.replace("/", "."), override._value)
        if value is ...:
            continue
        if value != override._value:
            override._value = value
            text = f"{override.get_key_element()}={override.get_value_element_as_str()}"
        kept.append(text)
    return kept


def _portable(name: str, value: Any) -> Any:
    """The value of a dotted name; ... if nothing of it can be used."""
    if any(f"{name}.".startswith(f"{here}.") for here in HERE):
        return ...
    if isinstance(value, dict):
        parts = {key: _portable(f"{name}.{key}", part) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not ...}
    if name != "model.weights" or not value:
        return value
    return replace(value, text=Path(value.text).name) if isinstance(value, QuotedString) else Path(value).name
