"""Python reads this where PYTHONPATH names this folder: a job of the test waits to be killed, right before it saves a
second epoch. One job does in each of the stages, and says so: STOPS/<file of the checkpoint> holds its id.
"""

import os
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from moments import before, first  # noqa: E402


def stop(name: str) -> None:
    job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if first(Path(os.environ["STOPS"]) / name, job):
        while True:
            time.sleep(1)


if "SLURM_ARRAY_JOB_ID" in os.environ:
    for file in ("unfinished.ckpt", "sparse.ckpt"):
        before(2, lambda file=file: stop(file), file)
