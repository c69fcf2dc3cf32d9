"""The whole config that a row's file stands for: what `python run.py experiments=ROW [control=NAME]` runs.

A run that differs from it is not the row; a row that does not compose would only fail when it is run. Hydra takes a
tenth of a second per row, so what it made is kept in outputs/rows.json, for as long as no file it is made of changes.
Rows are composed, never instantiated: nothing that a file names is imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from reprune.errors import UserError
from reprune.files import write_json
from reprune.results.rows import flat
from reprune.runs import store
from reprune.runs.places import project

Asked = tuple[str, str | None]          # row, control


def compose_rows(root: Path, asked: Iterable[Asked], errors: list[str]) -> dict[Asked, dict]:
    """-> configs, flat; a line in `errors` for each row that run.py would refuse."""
    asked = {" ".join([f"experiments={row}", *[f"control={control}"] * (control is not None)]): (row, control)
             for row, control in asked}
    kept, root = root / "outputs/rows.json", project(root)
    if not asked or not (root / "conf/config.yaml").is_file():
        return {}                                                 # rows alone, without the program
    made_of = {what: digest([root / f"experiments/{row}.yaml"]) for what, (row, _) in asked.items()}
    everything = "-".join([digest(sorted((root / "conf").rglob("*.yaml"))), version("hydra-core"), version("omegaconf"),
                           digest(sorted(Path(store.__file__).parent.glob("*.py")))])
    known = read(kept, everything)
    if missing := [what for what in asked if known.get(what, {}).get("made_of") != made_of[what]]:
        for what in missing:
            known.pop(what, None)
        known |= {what: {"made_of": made_of[what], "config": config}
                  for what, config in composed(root, missing, errors)}
        with suppress(UserError):                                 # a folder that takes no files: only slower
            write_json(kept, {"everything": everything, "rows": known})
    return {asked[what]: known[what]["config"] for what in asked if what in known}


def composed(root: Path, missing: list[str], errors: list[str]) -> Iterator[tuple[str, dict]]:
    from hydra.errors import HydraException  # a fifth of a second: only where something is to be composed

    from reprune.runs.compose import composing

    with composing(root) as composer:
        for what in missing:
            try:
                config = OmegaConf.to_container(composer(what.split()), resolve=True, throw_on_missing=True)
                yield what, flat(json.loads(json.dumps(config)))        # as a record gives it back
            except (HydraException, OmegaConfBaseException, YAMLError, UserError, ValueError, TypeError) as error:
                file, _, control = what.removeprefix("experiments=").partition(" ")
                told = " ".join(str(error).split())
                errors.append(f"experiments/{file}.yaml: does not compose with conf/ any more"
                              f"{f' ({control})' * bool(control)}: {told}")


def digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)).hexdigest()[:16]


def read(kept: Path, everything: str) -> dict[str, dict]:
    """What was composed before, if all that it was made of is as it was."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(kept.read_text(encoding="utf-8"))
        if content["everything"] == everything:
            return dict(content["rows"])
    return {}
