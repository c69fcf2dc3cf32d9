"""Which classes a config may name by `_target_`: those at the faces of this project's wings, torch's layers and
optimisers, and what lies in a package that the command line names, or the user's own conf/. A row or a record may come
from a stranger: nothing else that it names is looked up, imported or called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from reprune.errors import UserError

OURS = re.compile(r"reprune\.(data|models|pruning|training)\.\w+|reprune\.methods\.\w+\.\w+|torch\.(optim|nn)(\.\w+)+|"
                  r"pytorch_lightning\.Trainer")


def every(node: Any) -> Iterator[Any]:
    """All `_target_`s of a config, wherever they stand."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [value] if key == "_target_" else every(value)
    elif isinstance(node, list):
        for item in node:
            yield from every(item)


def foreign(config: dict, overrides: Iterable[str] = ()) -> list[str]:
    """What a config names that it may not; overrides: as typed.

    >>> foreign({"method": {"_target_": "os.system"}})
    ['os.system']
    >>> foreign({"model": {"_target_": "mine.Net"}}, ["model._target_=mine.Net"])
    []
    """
    own = (file.read_text(encoding="utf-8") for file in Path("conf").glob("**/*.yaml"))
    named = {package for text in (*overrides, *own)
             for package in re.findall(r"_target_['\"]?[=:]\s*['\"]?(\w+)", text)}
    return sorted({str(target) for target in every(config) if not (isinstance(target, str) and (
        OURS.fullmatch(target) or target.split(".")[0] in named))})


def hold(config: dict, overrides: Iterable[str]) -> None:
    """Raises UserError for a config that names what it may not."""
    if strange := foreign(config, overrides):
        raise UserError(f"_target_ {strange[0]!r} is not of this project, and what a file names is not run: if you "
                        f"trust it, name it in conf/, or on the command line: KEY._target_={strange[0]}")
