"""Do the files of all rows still compose with conf/? A row whose option was renamed would only fail when it is run."""

from __future__ import annotations

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
from reprune.results import Row


def compose_rows(root: Path, rows: list[Row], errors: list[str]) -> None:
    """A line in `errors` for each row that `python run.py experiments=ROW` would refuse."""
    if not (root / "conf/config.yaml").is_file():
        return                                                    # results alone, without the program
    with found_in(root), initialize_config_dir(str((root / "conf").resolve()), version_base="1.3"):
        composer = Composer(GlobalHydra.instance().config_loader())
        for row in rows:
            try:
                cfg = composer([f"experiments={row.id}"])
                OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
                instantiate(cfg.method)                           # says which option a class does not know
            except (HydraException, OmegaConfBaseException, UserError, ValueError, TypeError) as error:
                told = " ".join(str(error).split())
                errors.append(f"experiments/{row.id}.yaml: does not compose with conf/ any more: {told}")


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
