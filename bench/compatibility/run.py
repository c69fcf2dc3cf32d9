"""results/compatibility.md: what can be pruned of torchvision's and timm's CNNs, beside torch-pruning on the same nets.

    python bench/compatibility/run.py [--only 'timm/res*']        about 20 minutes of one core

Each net and each pruner has a process of its own with a time limit. What they have found is kept in
results/bench/compatibility.json, and the page is made of all that is there: with a pattern, only those are measured
again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]
import measure  # noqa: E402
import page  # noqa: E402

from reprune.files import write_text  # noqa: E402

ANSWERS = ROOT / "results" / "bench" / "compatibility.json"
LIMIT = 240                                                       # seconds of one pruner on one net


def apart(work: Any, *args: Any, limit: float = LIMIT) -> dict:
    """work(*args, found) in a process of its own -> found, also where it fails, dies or does not end."""
    fork = multiprocessing.get_context("fork")                    # libraries are imported once
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=_child, args=(there, work, args))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(limit) else {"failed": f"no end after {limit} s"}
    except EOFError:
        process.join()
        return {"failed": f"ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _child(to: Any, work: Any, args: tuple) -> None:
    found: dict = {}
    try:
        work(*args, found)
    except Exception as failed:                                   # whatever a net or a pruner ends in
        found["failed"] = f"{type(failed).__name__}: {' '.join(str(failed).split())[:300]}"
    to.send(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="pattern of names, as timm/res*")
    only = parser.parse_args().only
    answers = json.loads(ANSWERS.read_text(encoding="utf-8")) if ANSWERS.is_file() else {}
    for pruner in measure.PRUNERS:                                # what is done once counts for nobody
        measure.warm_up(pruner)
    for name in [n for n in measure.names() if fnmatch(n, only)]:
        answers[name] = {pruner: apart(measure.measure, name, pruner) for pruner in measure.PRUNERS}
        print(name, json.dumps(answers[name]), flush=True)
        write_text(ANSWERS, json.dumps(answers, indent=1, sort_keys=True) + "\n")
        write_text(page.PAGE, page.page(answers))


if __name__ == "__main__":
    main()
