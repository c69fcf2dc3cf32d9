"""What tables are made of: rows (experiments/<paper>/*.yaml) and records (results/runs/*.json), checked and joined."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reprune.errors import UserError
from reprune.record import SCHEMA
from reprune.store import NOT_IN_KEY, key_of

GROUPS = ("model", "dataset", "method", "recipe")           # config groups whose choice a record names
STAGES = ("baseline", "sparse", "recover")
CLAIM = {"baseline": "percent", "pruned": "percent", "params_drop": "percent or null", "macs_drop": "percent or null",
         "source": "text", "provenance": "text"}
RECORD = {
    **dict.fromkeys(["key", "experiment", *GROUPS, "started", "baseline.source", "latency.device"], "text"),
    **dict.fromkeys(["config", *(f"config.{group}" for group in GROUPS), "config.trainer"], "mapping"),
    **{f"{net}.{name}": "positive" for net in ("baseline", "pruned") for name in ("params", "macs", "latency_ms")},
    **dict.fromkeys(["latency.batch_size", "latency.threads"], "positive"), "seed": "count",
    "baseline.top1": "percent", "pruned.top1": "percent", "pruned.top1_best": "percent or null",
    "epochs": "counts", "paper_epochs": "counts or null", "env": "mapping"}


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KINDS = {"text": lambda v: isinstance(v, str) and v.strip() != "",
         "mapping": lambda v: isinstance(v, dict), "list": lambda v: isinstance(v, list),
         "percent": lambda v: number(v) and 0 <= v <= 100, "positive": lambda v: number(v) and 0 < v < float("inf"),
         "count": lambda v: number(v) and isinstance(v, int) and v >= 0,
         "counts": lambda v: isinstance(v, dict) and all(KINDS["count"](v.get(stage)) for stage in STAGES)}


def must(node: Any, fields: dict[str, str], prefix: str = "") -> None:
    """Raises UserError for the first field of `node` that is not of its kind."""
    for name, kind in fields.items():
        value = node
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not (KINDS[kind.removesuffix(" or null")](value) or (value is None and kind.endswith("or null"))):
            raise UserError(f"{prefix}{name} must be {kind}, not {value!r:.60}")


@dataclass(frozen=True)
class Row:
    """One experiments/<paper>/<name>.yaml."""
    id: str                     # <paper>/<name>, the record's `experiment`
    title: str
    command: str
    claim: dict | None          # None: a row of our own
    choices: dict[str, str]     # method -> l1, as in the defaults list
    config: dict[str, Any]      # what the file sets itself, flat: method.allocation.macs -> 0.5


def read_row(file: Path) -> Row:
    text, name = file.read_text(encoding="utf-8"), f"{file.parent.name}/{file.stem}"
    node = OmegaConf.to_container(OmegaConf.create(text or "{}"))       # the same reading of YAML as Hydra's
    if not isinstance(node, dict):
        raise UserError("file must be a mapping")
    claim, defaults = node.pop("claim", None), node.pop("defaults", None) or []
    must({"defaults": defaults}, {"defaults": "list"})
    if claim is not None:
        must({"claim": claim}, {"claim": "mapping"})
        must(claim, CLAIM, "claim.")
        if unknown := sorted(set(claim) - set(CLAIM)):
            raise UserError(f"claim.{unknown[0]} is unknown, allowed: {', '.join(CLAIM)}")
    comment = [line.lstrip("# ") for line in takewhile(lambda s: s.startswith("#"), text.splitlines())
               if not line.startswith("# @")]
    title, python, rest = "\n".join(comment).partition("python run.py")
    command = python + rest.partition("\n")[0].rstrip() or f"python run.py experiments={name}"
    if f"experiments={name}" not in command.split():
        raise UserError(f"command {command!r} must name experiments={name}")
    choices = {group: choice for entry in defaults if isinstance(entry, dict) for key, choice in entry.items()
               if (group := str(key).removeprefix("override /")) in GROUPS}
    config = {k: v for k, v in flat(node).items() if "${" not in str(v)}
    return Row(name, " ".join(title.split()).rstrip("."), command, claim, choices, config)


def read_record(file: Path) -> dict:
    record = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or record.get("status") != "done":
        raise UserError(f"schema must be {SCHEMA} and status 'done': not the record of a finished run")
    must(record, RECORD)
    if record["key"] != file.stem:
        raise UserError(f"key {record['key']!r} must be the name of the file")
    return record


def read_all(files: list[Path], read: Callable[[Path], Any], root: Path, errors: list[str]) -> list:
    """What `read` makes of each file; a bad file becomes one line in `errors`."""
    found = []
    for file in sorted(files):
        try:
            found.append(read(file))
        except (UserError, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
            kind = "" if isinstance(error, UserError) else "content cannot be read: "
            errors.append(f"{file.relative_to(root).as_posix()}: {kind}{' '.join(str(error).split())}")
    return found


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted name: value}, without what a result does not depend on, and the seed.

    >>> flat({"method": {"p": 1, "rates": {2: 0.5}}, "seed": 3})
    {'method.p': 1, 'method.rates.2': 0.5}
    """
    if not isinstance(node, dict):
        return {prefix: node}
    return {name: leaf for key, value in node.items() if (at := f"{prefix}{'.' * bool(prefix)}{key}") != "seed"
            and at not in NOT_IN_KEY for name, leaf in flat(value, at).items()}


# ---------------------------------------------------------------- which runs stand on one line

@dataclass
class Line:
    """The runs of a row that differ in nothing but the seed."""
    row: Row
    runs: list[dict]
    setting: str = ""           # what sets it apart from the row's file and from the row's other lines

    @property
    def given(self) -> bool:
        return self.runs[0]["baseline"]["source"] != "trained here"

    @property
    def section(self) -> str:
        """full, short (fewer epochs or images than the paper), changed (not what the row's file says), or own."""
        if self.row.claim is None:
            return "own"
        run, paper = self.runs[0], self.runs[0]["paper_epochs"]
        gap = [run["epochs"][s] - paper[s] for s in STAGES if not (s == "baseline" and self.given)] if paper else [-1]
        if min(gap) < 0 or run["config"]["dataset"].get("limit") is not None:
            return "short"
        return "changed" if max(gap) > 0 or departures(self.row, run) else "full"


def departures(row: Row, run: dict) -> set[str]:
    """Names of what the row's file says and the run does otherwise."""
    config = flat(run["config"])
    return ({group for group, choice in row.choices.items() if run[group] != choice}
            | {name for name, value in row.config.items() if config.get(name) != value})


def lines_of(row: Row, records: list[dict]) -> list[Line]:
    """Never two settings on one line."""
    settings = defaultdict(list)
    for run in sorted(records, key=lambda r: (r["seed"], r["key"])):
        settings[json.dumps(run["epochs"], sort_keys=True), key_of({**run["config"], "seed": None})].append(run)
    lines = [Line(row, runs) for _, runs in sorted(settings.items())]
    configs = [{**flat(line.runs[0]["config"]), **{g: line.runs[0][g] for g in GROUPS}} for line in lines]
    apart = {name for config in configs for name in config if any(c.get(name) != config[name] for c in configs)}
    for line, config in zip(lines, configs, strict=True):
        names = apart | departures(row, line.runs[0])
        line.setting = ", ".join(f"`{n}={json.dumps(config.get(n))}`".replace('"', "") for n in sorted(names)
                                 if n in GROUPS or n.split(".")[0] not in names)      # method=random says method.* too
    return lines
