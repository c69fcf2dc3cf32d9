"""results/compatibility.md: made of what has been found, by processes that may die or hang."""

import json
import os
import runpy
import signal
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "bench" / "compatibility"


def test_the_page_is_that_of_the_answers():
    page = runpy.run_path(str(FOLDER / "page.py"))
    answers = json.loads((page["PAGE"].parent / "bench" / "compatibility.json").read_text(encoding="utf-8"))
    assert page["PAGE"].read_text(encoding="utf-8") == page["page"](answers)


def test_a_net_that_hangs_or_dies_is_a_line():
    apart = runpy.run_path(str(FOLDER / "run.py"))["apart"]
    assert apart(lambda found: found.update(traced=True)) == {"traced": True}
    assert apart(lambda found: time.sleep(60), limit=.1) == {"failed": "no end after 0.1 s"}
    assert apart(lambda found: os.kill(os.getpid(), signal.SIGKILL)) == {"failed": "ended with -9"}
    assert apart(lambda found: found.update(builds=True) or 1 / 0) == {
        "builds": True, "failed": "ZeroDivisionError: division by zero"}
