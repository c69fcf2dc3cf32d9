"""Rows and claims: experiments/<paper>/<row>.yaml and experiments/papers.yaml, read, and checked by schema.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from itertools import takewhile
from operator import attrgetter
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reprune.errors import UserError
from reprune.runs.places import project, row_files
from reprune.runs.store import NEUTRAL, NOT_IN_KEY
from reprune.schema import GROUPS, Claim, Paper, Row

OVERRIDE = re.compile(r"override /(model|dataset|method|recipe|trainer)(/\w+)?")
LARGEST = 16 * 2**20                                        # bytes of a record
LONGEST = 32 * 2**10                                        # characters of a row, or of papers.yaml
LEFT_OUT = frozenset(("seed", *NOT_IN_KEY))


def read_yaml(file: Path) -> Any:
    """The same reading of YAML as Hydra's: a name that is given twice is an error. Few lines of aliases can stand for
    more than a memory holds, so there are none; and of a text 40 KiB take a second."""
    text = file.read_text(encoding="utf-8")
    if len(text) > LONGEST:
        raise UserError(f"content of {len(text)} characters is not read: at most {LONGEST}")
    if "&" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise UserError("aliases (*name) are not read: write the value out")
    try:
        return OmegaConf.to_container(OmegaConf.create(text or "{}"))
    except RecursionError:
        raise UserError("content cannot be read: it is nested too deeply") from None


def read_row(file: Path) -> Row:
    text, name, node = file.read_text(encoding="utf-8"), f"{file.parent.name}/{file.stem}", read_yaml(file)
    if not isinstance(node, dict):
        raise UserError("file must be a mapping")
    claim, defaults = node.pop("claim", None), node.pop("defaults", None) or []
    if not isinstance(defaults, list):
        raise UserError(f"defaults must be a list, not {defaults!r:.60}")
    package = re.search(r"@package\s+(\S+)", text)
    if "hydra" in node or (package and package[1] != "_global_"):
        raise UserError("a row sets nothing of hydra and nothing outside of `# @package _global_`")
    if strange := [entry for entry in defaults if not (isinstance(entry, dict) and all(OVERRIDE.fullmatch(str(key))
                                                                                      for key in entry))]:
        raise UserError(f"defaults: {strange[0]!r:.60} is no choice of a row, write - override /method: l1")
    comment = [line.lstrip("# ") for line in takewhile(lambda s: s.startswith("#"), text.splitlines())
               if not line.startswith("# @")]
    title, python, rest = "\n".join(comment).partition("python run.py")
    command = python + rest.partition("\n")[0].rstrip() or f"python run.py experiments={name}"
    if f"experiments={name}" not in command.split():
        raise UserError(f"command {command!r} must name experiments={name}")
    choices = {group: choice for entry in defaults if isinstance(entry, dict) for key, choice in entry.items()
               if (group := str(key).removeprefix("override /")) in GROUPS}
    config = {k: v for k, v in flat(node, neutral={}).items() if "${" not in str(v)}
    return Row.read({"id": name, "title": " ".join(title.split()).rstrip("."), "command": command, "choices": choices,
                     "config": config, "claim": None if claim is None else Claim.read(claim, "claim")})


def read_papers(content: Any, rows: set[str], errors: list[str]) -> dict[str, Paper]:
    """What papers.yaml says of each paper and of each folder of `rows` (ids), `beside` as ids.

    What is wrong becomes a line in `errors`.
    """
    content = content if isinstance(content, dict) else {}
    found: dict[str, Paper] = {}
    for paper in sorted({*map(str, content), *(name.split("/")[0] for name in rows)}):
        found[paper] = Paper()
        try:
            if not isinstance(content.get(paper), dict):
                raise UserError(f"{paper} must be a mapping with title, authors, venue")
            about = Paper.read(content[paper], paper)
            patterns, about.beside, found[paper] = about.beside, [], about
            for pattern in patterns:
                others = {row for row in rows if row.split("/")[0] != paper and fnmatchcase(row, pattern)}
                if not others and any(row.startswith(f"{paper}/") for row in rows):
                    about.beside = []
                    raise UserError(f"{paper}.beside {pattern!r} matches no row of another folder")
                about.beside = sorted({*about.beside, *others})
        except UserError as error:
            errors.append(f"experiments/papers.yaml: {error}")
    return found


def bounded(file: Path) -> Path:
    """The same. Raises UserError for what has no end, or is larger than any record or row."""
    if not S_ISREG(file.stat().st_mode):                          # a pipe would never end
        raise UserError("content cannot be read: not a file")
    if (size := file.stat().st_size) > LARGEST:
        raise UserError(f"content of {size} bytes is not read: at most {LARGEST}")
    return file


def read_all(files: list[Path], read: Callable[[Path], Any], root: Path, errors: list[str]) -> list:
    """What `read` makes of each file; a bad file becomes one line in `errors`, one that has gone by now is nothing."""
    found = []
    for file in sorted(files, key=attrgetter("parts")):
        try:
            found.append(read(bounded(file)))
        except FileNotFoundError:
            if file.is_symlink():                                 # to nowhere
                errors.append(f"{file.relative_to(root).as_posix()}: content cannot be read: a link to nothing")
        except (UserError, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
            kind = "" if isinstance(error, UserError) else "content cannot be read: "
            errors.append(f"{file.relative_to(root).as_posix()}: {kind}{' '.join(str(error).split())}")
    return found


def flat(node: dict, neutral: dict[str, Any] = NEUTRAL) -> dict[str, Any]:
    """Nested mappings as {dotted name: value}, without what a result does not depend on, the seed, and the options
    whose value means what runs did before there were any: earlier records do not have them.

    >>> flat({"method": {"p": 1, "rates": {2: 0.5}, "allocation": {"multiple": 1}}, "seed": 3})
    {'method.p': 1, 'method.rates.2': 0.5}
    """
    found: dict[str, Any] = {}

    def add(node: dict, prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if name in LEFT_OUT:
                continue
            if isinstance(value, dict):
                add(value, f"{name}.")
            elif name not in neutral or value != neutral[name]:
                found[name] = value

    add(node, "")
    return found


def departures(row: Row, chosen: dict[str, Any], config: dict[str, Any]) -> set[str]:
    """Names of what the row's file says and a run does otherwise; chosen: the run's config groups; config: flat."""
    return ({group for group, choice in row.choices.items() if chosen[group] != choice}
            | {name for name, value in row.config.items() if config.get(name, NEUTRAL.get(name)) != value})


def rows_of(root: Path, ids: Iterable[str]) -> list[Row]:
    """Those of these ids that can be run in a folder. Raises UserError for the first that is not as it must be."""
    files, rows, errors = row_files(root), [], []
    for file in (files[row] for row in ids if row in files):
        rows += read_all([file], read_row, file.parents[2], errors)
    if errors:
        raise UserError(errors[0])
    return rows


def read_rows(root: Path, errors: list[str]) -> tuple[list[Row], dict[str, Paper]]:
    """-> rows, and what papers.yaml says of their folders"""
    root = project(root)
    files = [*root.glob("experiments/*/*.yaml")]
    rows = read_all(files, read_row, root, errors)
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        same = first.setdefault((row.paper, row.title), row)
        if same is not row and row.claim and same.claim:
            errors.append(f"experiments/{row.id}.yaml: comment {row.title!r} is that of experiments/{same.id}.yaml "
                          "too: a claim stands in one file, and the first line says which row of the paper it is")
    if not rows:
        errors.append("experiments: no row, expected experiments/<paper>/<row>.yaml")
    papers = read_all([root / "experiments/papers.yaml"], read_yaml, root, errors)
    return rows, read_papers(papers[0] if papers else None,
                             {f"{file.parent.name}/{file.stem}" for file in files}, errors)
