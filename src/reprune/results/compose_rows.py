"""The whole config that a row's file stands for: what `python run.py experiments=ROW` runs.

A run that differs from it is not the row; a row that does not compose would only fail when it is run. Hydra takes a
tenth of a second per row, so what it made is kept in outputs/rows.json, for as long as no file it is made of changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reprune.errors import UserError
from reprune.files import write_json
from reprune.results.rows import Row, flat
from reprune.runs.compose import Composer


def compose_rows(root: Path, rows: list[Row], errors: list[str]) -> dict[str, dict]:
    """-> row id -> config, flat; a line in `errors` for each row that run.py would refuse."""
    if not rows or not (root / "conf/config.yaml").is_file():
        return {}                                                 # results alone, without the program
    kept, made_of = root / "outputs/rows.json", {row.id: digest([root / f"experiments/{row.id}.yaml"]) for row in rows}
    everything = "-".join([digest(sorted((root / "conf").rglob("*.yaml"))), version("hydra-core"), version("omegaconf"),
                           digest(sorted(Path(__file__).parent.rglob("*.py")))])
    known = read(kept, everything)
    missing = [row for row in rows if known.get(row.id, {}).get("made_of") != made_of[row.id]]
    if missing:
        for row in missing:
            known.pop(row.id, None)
        known |= {name: {"made_of": made_of[name], "config": config}
                  for name, config in compose(root, missing, errors).items()}
        with suppress(UserError):                                 # a folder that takes no files: only slower
            write_json(kept, {"everything": everything, "rows": known})
    return {row.id: known[row.id]["config"] for row in rows if row.id in known}


def compose(root: Path, rows: Iterable[Row], errors: list[str]) -> dict[str, dict]:
    found = {}
    with found_in(root), initialize_config_dir(str((root / "conf").resolve()), version_base="1.3"):
        composer = Composer(GlobalHydra.instance().config_loader())
        for row in rows:
            try:
                cfg = composer([f"experiments={row.id}"])
                config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
                instantiate(cfg.method)                           # says which option a class does not know
                found[row.id] = flat(json.loads(json.dumps(config)))        # as a record gives it back
            except (HydraException, OmegaConfBaseException, UserError, ValueError, TypeError) as error:
                told = " ".join(str(error).split())
                errors.append(f"experiments/{row.id}.yaml: does not compose with conf/ any more: {told}")
    return found


def digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)).hexdigest()[:16]


def read(kept: Path, everything: str) -> dict[str, dict]:
    """What was composed before, if all that it was made of is as it was."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(kept.read_text(encoding="utf-8"))
        if content["everything"] == everything:
            return dict(content["rows"])
    return {}


@contextmanager
def found_in(root: Path) -> Iterator[None]:
    """conf/config.yaml looks for experiments/ in REPRUNE_ROOT."""
    before = os.environ.get("REPRUNE_ROOT")
    os.environ["REPRUNE_ROOT"] = str(root.resolve())
    try:
        yield
    finally:
        os.environ.pop("REPRUNE_ROOT")
        if before is not None:
            os.environ["REPRUNE_ROOT"] = before
