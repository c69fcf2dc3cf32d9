"""The records of results/runs/*.json, checked by schema.Record: what tables need of each, ten thousand in seconds.

Of a config, which is most of a record, only its hash is kept with the run, and one copy of each distinct config.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from pydantic_core import to_json

from reprune.errors import UserError
from reprune.results.rows import bounded, flat, read_all
from reprune.runs.fingerprint import PARTS
from reprune.runs.store import counted, digest
from reprune.schema import STAGES, Record


@dataclass(slots=True)
class Run:
    """One record without its bulk."""

    record: Record              # config, widths, curves and group_norms are empty
    config_id: str              # of what determines the result, without the seed
    norms: dict[str, float]     # what sparse training has left: see `norms_of`
    limit: int | None           # of the images
    last_epochs: int | None     # of recovery after the last round

    @property
    def same(self) -> tuple:
        """What the runs of a line share; None in place of the code of a record that does not know it."""
        of, code = self.record, self.record.code
        return (of.experiment, of.control, self.config_id, tuple(code.get(part) for part in PARTS) if code else None,
                *(getattr(of.epochs, stage) for stage in STAGES))

    @property
    def machine(self) -> str:
        at = self.record.latency
        return f"{at.device}, batch {at.batch_size:g}, {at.threads:g} thread{'s' * (at.threads != 1)}"


def read_runs(root: Path, errors: list[str]) -> tuple[list[Run], dict[str, dict[str, Any]]]:
    """-> runs, in the order of their keys; {config_id: config, flat}. Each bad file becomes a line in `errors`."""
    configs: dict[str, dict[str, Any]] = {}

    def read(file: Path) -> Run:
        record = read_record(file)
        if record.key != file.stem:
            raise UserError(f"key {record.key!r} must be the name of the file")
        counts = counted(record.config)
        if record.key != (key := digest(counts)):                 # else a copy would be averaged in twice
            raise UserError(f"key {record.key} is not that of its config, {key}: a copy, or changed by hand")
        if record.experiment is None:
            raise UserError("experiment: must be the id of a row, not None")
        run = run_of(record, counts)
        configs.setdefault(run.config_id, record.config)
        record.config, record.widths, record.curves, record.group_norms = {}, {}, {}, None
        return run

    with no_cycles():
        runs = read_all([*root.glob("results/runs/*.json")], read, root, errors)
        return runs, {name: flat(config) for name, config in configs.items()}


@contextmanager
def no_cycles() -> Iterator[None]:
    """Plain data has none, and to look for them again and again in all that was read takes a fifth of the time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def read_record(file: Path) -> Record:
    return Record.read(bounded(file).read_bytes())


def run_of(record: Record, counts: dict[str, Any]) -> Run:
    """counts: of its config, see store.counted."""
    config, recover = record.config, record.config["recipe"].get("recover")
    return Run(record, config_id(counts), norms_of(record.group_norms or {}), config["dataset"].get("limit"),
               recover.get("epochs") if isinstance(recover, dict) else None)


def config_id(counts: dict[str, Any]) -> str:
    """Of what counts of a config, whatever the order of its keys, but for the seed. Seeds share one: it is sorted once.

    >>> config_id({"a": 1, "b": 2}) == config_id({"b": 2, "a": 1, "seed": 3})
    True
    """
    return _sorted(to_json({name: value for name, value in counts.items() if name != "seed"}))


@cache
def _sorted(text: bytes) -> str:
    return digest(json.loads(text))


def norms_of(layers: dict[str, list[float]]) -> dict[str, float]:
    """How many groups there are, and how many of them sparse training has emptied; nothing where there are none.

    >>> norms_of({"conv1": [2.0, 0.019, 0.005, 0.0], "conv2": [0.004, 0.5]})
    {'groups': 6, 'largest': 2.0, 'median': 0.012, 'near': 4, 'small': 3}
    """
    if not layers:
        return {}
    every = sorted(norm for norms in layers.values() for norm in norms)
    return {"groups": len(every), "largest": every[-1], "median": median(every),
            "near": sum(norm <= limit for norms in layers.values() for limit in [0.01 * max(norms)] for norm in norms),
            "small": sum(norm < 0.01 for norm in every)}
