"""`reprune run`: Hydra's command around one run, or around the cells of a sweep."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reprune.errors import UserError
from reprune.runs.compose import composing
from reprune.runs.hints import refused, usage
from reprune.runs.places import additions, home
from reprune.runs.shown import finished
from reprune.runs.store import Store
from reprune.sweeps.cells import cell, expand

SWEEP = ("-m", "--multirun")


def job(cfg: DictConfig) -> float:
    return cell(cfg, attempt)


def attempt(cfg: DictConfig) -> dict:
    """-> the record. What trains, seconds of imports, is only asked where something is to be done."""
    if (record := finished(cfg, Store(cfg))) is None:
        from reprune.pipeline import run

        record = run(cfg)
    return record


def run(argv: Sequence[str]) -> None:
    """Ends the process where something is wrong: with a line for a user's error."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")               # keeps torch's profiler quiet
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")           # threads that spin starve other runs
    os.environ["REPRUNE_ROOT"] = str(home())                      # where conf/config.yaml finds experiments/
    sys.path.insert(0, os.getcwd())                               # methods and nets of the user's own
    whole = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        argv = expand(list(argv), Path())
        if {"-h", "--help"} & {*argv}:
            print(usage())
        elif {*SWEEP} & {*argv} and {"-c", "--cfg"} & {*argv}:
            print("\n---\n".join(f"# {' '.join(what)}\n{OmegaConf.to_yaml(cfg)}" for what, cfg in split(argv)))
        else:
            hydrate(argv)
    except KeyboardInterrupt:
        sys.exit(130)                                             # as shells count it; what was saved has been said
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        inside = within(error)
        if whole or not (inside or isinstance(error, HydraException | OmegaConfBaseException | ValueError)):
            raise
        if inside is None:
            sys.exit(f"error: {refused(error, argv)}")
        traceback.print_exception(type(error), error, inside)     # without the frames that lead to the run
        sys.exit(1)


def hydrate(argv: list[str]) -> None:
    sys.argv = ["reprune run", *sorted({*SWEEP} & {*argv}), *additions(), *(o for o in argv if o not in SWEEP)]
    os.environ["HYDRA_FULL_ERROR"] = "1"                          # errors come here
    hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="config")(job)()


def within(error: BaseException) -> TracebackType | None:
    """The part of a traceback that lies in the run; None: what composes its config has raised this."""
    part = error.__traceback__
    while part is not None and part.tb_frame.f_code is not attempt.__code__:
        part = part.tb_next
    return part


def split(argv: Sequence[str]) -> Iterator[tuple[list[str], DictConfig]]:
    """The cells that the overrides of a sweep mean, with their configs. Raises UserError where there is no config."""
    given = [o for o in expand([*argv], Path()) if not o.startswith("-") and o != "job"]
    with composing(Path()) as compose:
        try:
            cells = BasicSweeper.split_arguments(OverridesParser.create(compose.loader).parse_overrides(given), None)[0]
            for what in cells:
                yield what, compose(what)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UserError(refused(error, given)) from error


def records_of(argv: Sequence[str]) -> list[Path]:
    """Of the cells of a sweep that have finished."""
    stores = [Store(cfg) for _, cfg in split(argv)]
    return [store.record_file for store in stores if store.finished()]
