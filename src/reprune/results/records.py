"""The records of results/runs/*.json, checked by schema.Record: what tables need of each, ten thousand in seconds.

Of a config, which is most of a record, only its hash is kept with the run, and one copy of each distinct config.
"""

from __future__ import annotations

import gc
import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from pydantic_core import to_json

from reprune.errors import UserError
from reprune.results.rows import bounded, flat, read_all
from reprune.runs.fingerprint import PARTS
from reprune.runs.store import counted
from reprune.schema import STAGES, Record

HOLE = "${seed}"        # a config that is resolved holds nothing like it


@dataclass(slots=True)
class Run:
    """One record, without its bulk."""

    record: Record              # config, widths, curves and group_norms are empty, where nobody asks for the whole
    config_id: str              # see `config_id`
    norms: dict[str, float]     # what sparse training has left: see `norms_of`

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


def read_runs(root: Path, errors: list[str], whole: bool = False) -> tuple[list[Run], dict[str, dict[str, Any]]]:
    """-> runs, in the order of their keys; {config_id: config, flat}. Each bad file becomes a line in `errors`."""
    ids: dict[bytes, str] = {}                                    # of configs that differ in nothing but the seed
    configs: dict[str, dict[str, Any]] = {}

    def read(file: Path) -> Run:
        record = read_record(file)
        if record.key != file.stem:
            raise UserError(f"key {record.key!r} must be the name of the file")
        config = {**record.config, "seed": HOLE}
        if (text := to_json(config)) not in ids:
            ids[text] = config_id(counted(config))
            configs.setdefault(ids[text], flat(config))
        key = hashlib.sha256(ids[text].replace(f'"{HOLE}"', json.dumps(record.config.get("seed"))).encode())
        if record.key != (key := key.hexdigest()[:16]):           # else a copy would be averaged in twice
            raise UserError(f"key {record.key} is not that of its config, {key}: a copy, or changed by hand")
        if record.experiment is None:
            raise UserError("experiment: must be the id of a row, not None")
        run = Run(record, ids[text], norms_of(record.group_norms or {}))
        if not whole:
            record.config, record.widths, record.curves, record.group_norms = {}, {}, {}, None
        return run

    return read_all([*root.glob("results/runs/*.json")], read, root, errors), configs


@contextmanager
def no_cycles() -> Iterator[None]:
    """Plain data has none, and to look for them again and again in all that was read takes a fifth of the time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.freeze()                                           # and back: among the old, which are seldom looked
            gc.unfreeze()                                         # through; else the next look would begin with all
            gc.enable()


def read_record(file: Path) -> Record:
    return Record.read(bounded(file).read_bytes())


def config_id(counts: dict[str, Any]) -> str:
    """What counts of a config as one text (its hash: the key), whatever the order of its names; no seed, but a hole.

    >>> config_id({"a": 1, "b": 2}) == config_id({"b": 2, "a": 1, "seed": 3})
    True
    """
    return json.dumps({**counts, "seed": HOLE}, sort_keys=True)


def norms_of(layers: dict[str, list[float]]) -> dict[str, float]:
    """How many groups there are, and how many of them sparse training has emptied; nothing where there are none.

    >>> norms_of({"conv1": [2.0, 0.019, 0.005, 0.0], "conv2": [0.004, 0.5]})
    {'groups': 6, 'largest': 2.0, 'median': 0.012, 'near': 4, 'small': 3}
    """
    if not layers:
        return {}
    rising = [sorted(norms) for norms in layers.values()]
    every = sorted(chain(*rising))
    return {"groups": len(every), "largest": every[-1], "median": median(every),
            "near": sum(bisect_right(norms, 0.01 * norms[-1]) for norms in rising), "small": bisect_left(every, 0.01)}


def measured(of: Record) -> dict[str, float | None]:
    """What is averaged over seeds."""
    base, pruned = of.baseline, of.pruned
    macs = pruned.macs_mean or pruned.macs
    return {"baseline_top1": base.top1, "pruned_top1": pruned.top1, "delta": pruned.top1 - base.top1,
            "top1_sparse": of.sparse and of.sparse.top1, "top1_before_recovery": pruned.top1_before_recovery,
            "top1_best": pruned.top1_best,
            "seconds": sum(of.seconds.values()) if of.seconds else None,
            "seconds_cut": of.seconds.get("sparse", 0.0) + of.seconds.get("prune", 0.0) if of.seconds else None,
            "params_baseline": base.params, "params_pruned": pruned.params, "macs_baseline": base.macs,
            "macs_pruned": macs, "params_drop": 100 * (1 - pruned.params_left / base.params),
            "macs_drop": 100 * (1 - macs / base.macs),
            "density": pruned.density, "bytes": pruned.bytes, "bits": pruned.bits,
            "bytes_ratio": pruned.bytes_dense and pruned.bytes and pruned.bytes_dense / pruned.bytes}
