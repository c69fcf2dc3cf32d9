"""Published records as W&B runs: for runs that were made without logger=wandb, or on a machine without a network."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reprune.errors import UserError


def backfill(records: list[dict], project: str, entity: str | None, folder: Path) -> str:
    """One W&B run per record, its id the record's key: the same records again change nothing. -> what was done"""
    import wandb

    offline = os.environ.get("WANDB_MODE", "online") != "online"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for record in records:
            _send(record, project, entity, folder, offline)
    except Exception as error:                                    # W&B raises errors of many classes
        raise UserError(f"W&B: {' '.join(str(error).split()) or type(error).__name__}; the same command goes on"
                        ) from error
    finally:
        wandb.teardown()                                          # its service writes the last lines now
    done = f"{len(records)} run{'s' * (len(records) != 1)}"
    if not offline:
        return f"W&B has {done} of records in the project {project}"
    return f"wrote {done}; upload with:  wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*"


def _send(record: dict, project: str, entity: str | None, folder: Path, offline: bool) -> None:
    import wandb

    from reprune.runs.loggers import layers, names, numbers  # with torch

    what = [record[name] for name in ("method", "model", "dataset", "recipe", "seed", "experiment")]
    nothing_of_this_machine = {"x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True,
                               "disable_git": True, "disable_code": True, "x_save_requirements": False}
    run = wandb.init(
        project=project, entity=entity, id=record["key"], dir=str(folder), config=record["config"], **names(*what),
        mode="offline" if offline else "online", resume=None if offline else "allow", reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", init_timeout=30, finish_timeout=30,
                                finish_timeout_raises=True, **nothing_of_this_machine))
    if not run.resumed:                                           # else W&B has its curves
        for step, row in enumerate([*curves(record), *layers(record)]):
            run.log(row, step=step)
    run.summary.update(numbers(record))
    here = Path(run.dir).parent
    run.finish()
    for old in here.parent.glob(f"offline-run-*-{record['key']}*") if offline else ():       # -1: of the same second
        if old != here:
            shutil.rmtree(old)


def curves(record: dict) -> Iterator[dict[str, Any]]:
    """A row per epoch, as logger=wandb logs them; records of earlier versions have none.

    >>> list(curves({"curves": {"sparse": {"loss": [2.0, 1.0], "top1": [50.0, 60.0]}}}))[1]
    {'epoch': 1, 'sparse/loss': 1.0, 'sparse/top1': 60.0}
    """
    for stage, means in record.get("curves", {}).items():
        for epoch, values in enumerate(zip(*means.values(), strict=True)):
            yield {"epoch": epoch, **{f"{stage}/{name}": v for name, v in zip(means, values, strict=True)}}
