"""What tables cost when much has run: `python -m reprune tables` over 100, 1,000 and 10,000 synthetic records.

    python bench/records.py        about a minute

The records are made up, in a temporary folder, from the real rows of experiments/: for each row as many settings as are
needed, three seeds each, every number drawn at random. `seconds` and `peak MiB` are those of the whole process: start,
reading, writing all pages; `cpu` adds up both cores. `tables, first` composes every row with Hydra, a tenth of a second
each whatever the number of records; what it made is kept until conf/ changes. `lines` reads, checks and averages all
records, and renders nothing; `start` is `tables --help`.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import at_most, process, value
from tabulate import tabulate

from reprune.runs.store import key_of
from reprune.schema import STAGES

ROOT = Path(__file__).resolve().parent.parent
SIZES, SEEDS = (100, 1_000, 10_000), 3


def synthetic(n: int, rows: list[str], templates: list[dict], seed: int = 0) -> Iterator[dict]:
    """n records as runs would have written them: settings differ in a learning rate, and seeds in the numbers."""
    rng = random.Random(seed)
    for number in range(n):
        setting, which = divmod(number // SEEDS, len(rows))
        record = copy.deepcopy(templates[which % len(templates)])
        base = rng.gauss(93, 0.2)
        paper = {stage: rng.choice((0, 40, 200)) for stage in STAGES}
        record |= {"experiment": rows[which], "seed": number % SEEDS,
                   "paper_epochs": paper, "epochs": paper if setting % 2 else {**paper, "recover": 1}}
        record["config"]["seed"], record["config"]["dataset"]["split_seed"] = record["seed"], which       # its own key
        record["config"]["recipe"]["recover"]["optimizer"]["lr"] = round(0.001 * (setting + 1), 4)
        record["baseline"]["top1"], record["pruned"]["top1"] = round(base, 2), round(base - rng.gauss(0.3, 0.3), 2)
        record["env"]["git"] = f"{rng.randrange(4):012x}"
        record["key"] = key_of(record["config"])
        yield record


def project(folder: Path, n: int) -> Path:
    """A root with this repository's conf/ and experiments/, and records of its own."""
    for name in ("conf", "experiments"):
        shutil.copytree(ROOT / name, folder / name)
    rows = sorted(f"{file.parent.name}/{file.stem}" for file in (folder / "experiments").glob("*/*.yaml"))
    templates = [json.loads(file.read_text()) for file in sorted((ROOT / "results/runs").glob("*.json"))]
    (folder / "results/runs").mkdir(parents=True)
    for record in synthetic(n, rows, templates):
        (folder / f"results/runs/{record['key']}.json").write_text(json.dumps(record, indent=1))
    return folder


def line(what: str, n: int, root: Path | None, seconds: float, cpu: float, peak: float) -> dict:
    size = sum(file.stat().st_size for file in root.glob("results/runs/*.json")) if root else 0
    return {"what": what, "records": n, "MB of records": round(size / 1e6, 1), "seconds": round(seconds, 1),
            "cpu": round(cpu, 1), "peak MiB": round(peak)}


def main() -> list[dict]:
    found = [line("start", 0, None, *process("-m", "reprune", "tables", "--help"))]
    lines = "import sys, pathlib, reprune.results.lines as lines; lines.summary(pathlib.Path(sys.argv[1]))"
    for n in SIZES:
        with tempfile.TemporaryDirectory() as name:
            root = project(Path(name) / "project", n)
            for what in ("tables, first", "tables"):
                found.append(line(what, n, root, *process("-m", "reprune", "tables", "--root", str(root))))
            found.append(line("lines", n, root, *process("-c", lines, str(root))))
    return found


def targets(rows: list[dict]) -> list[dict]:
    most = {"records": max(SIZES)}
    return [*(at_most(f"{what}, {max(SIZES):,} records", value(rows, "seconds", what=what, **most), limit, " s")
              for what, limit in (("lines", 4), ("tables", 10), ("tables, first", 10))),
            at_most(f"their memory, {max(SIZES):,} records",
                    value(rows, "peak MiB", what="tables, first", **most), 771, " MiB")]


if __name__ == "__main__":
    print(tabulate(main(), headers="keys", tablefmt="github"))
