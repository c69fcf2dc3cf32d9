"""The whole config that a row's file stands for: what `python run.py experiments=ROW` runs.

A run that differs from it is not the row; a row that does not compose would only fail when it is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reprune.compose import Composer
from reprune.errors import UserError
from reprune.results import Row, flat


def compose_rows(root: Path, rows: list[Row], errors: list[str]) -> dict[str, dict]:
    """-> row id -> config, flat; a line in `errors` for each row that run.py would refuse."""
    found: dict[str, dict] = {}
    if not rows or not (root / "conf/config.yaml").is_file():
        return found                                              # results alone, without the program
    with found_in(root), initialize_config_dir(str((root / "conf").resolve()), version_base="1.3"):
        composer = Composer(GlobalHydra.instance().config_loader())
        for row in rows:
            try:
                cfg = composer([f"experiments={row.id}"])
                config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
                found[row.id] = flat(json.loads(json.dumps(config)))        # as a record gives it back
                instantiate(cfg.method)                           # says which option a class does not know
            except (HydraException, OmegaConfBaseException, UserError, ValueError, TypeError) as error:
                told = " ".join(str(error).split())
                errors.append(f"experiments/{row.id}.yaml: does not compose with conf/ any more: {told}")
    return found


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
