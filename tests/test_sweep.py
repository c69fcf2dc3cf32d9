"""A sweep as the command runs it: a cell that fails never stops the others."""

import json
import subprocess
import sys

from conftest import EPOCHS, TINY
from filelock import FileLock

from reprune import status
from reprune.pipeline import run
from reprune.store import write_json


def sweep(root, out, *overrides: str) -> subprocess.CompletedProcess:
    command = [sys.executable, root / "run.py", "-m", *TINY, *EPOCHS, f"output_dir={out}/outputs", *overrides]
    return subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=600)


def test_a_failing_cell_is_named_and_the_others_run(root, tmp_path):
    cells = ["method=l1", "method.allocation.rate=0.01,0.5", "seed=0"]       # at 0.01 no filter would go
    first = sweep(root, tmp_path, *cells)
    assert first.returncode == 1 and "Traceback" not in first.stderr
    records = [json.loads(f.read_text()) for f in tmp_path.glob("outputs/*/record.json")]
    assert [r["config"]["method"]["allocation"]["rate"] for r in records] == [0.5]
    (note,) = tmp_path.glob("outputs/failed/*.json")
    assert "would remove no filter" in json.loads(note.read_text())["error"]
    summary = first.stderr[first.stderr.index("failed:"):]
    assert "rate=0.01" in summary and "would remove no filter" in summary and "1 cell(s)" in summary

    again = sweep(root, tmp_path, "method=l1", "method.allocation.rate=0.5,0.4", "seed=0")
    assert again.returncode == 0 and "failed:" not in again.stderr           # of this sweep, not of an earlier one
    assert again.stdout.count("finished before") == 1


def test_status_tells_done_running_failed_cut_off_and_missing_apart(root, tmp_path, configure, monkeypatch, capsys):
    monkeypatch.chdir(root)
    options = [*TINY, *EPOCHS, f"output_dir={tmp_path}/outputs", f"results_dir={tmp_path}/results"]
    record = run(configure("method=l1", "seed=1"))
    ask = [*options, "method=l1,random", "seed=1,2", "-m"]
    assert status.main(ask) == 0
    said = capsys.readouterr().out
    assert "4 cells: 1 done, 3 missing" in said and record["key"] in said and "left" in said

    keys = {c.what: c.key for c in status.cells([*options, "method=l1,random", "seed=1,2"], root)}
    l1, random_1, random_2 = (next(k for w, k in keys.items() if w.endswith(end)) for end in
                              ("method=l1 seed=2", "method=random seed=1", "method=random seed=2"))
    write_json(tmp_path / "outputs/failed" / f"{l1}.json", {"error": "no such thing"})
    (tmp_path / "outputs" / random_1 / "stages").mkdir(parents=True)
    (tmp_path / "outputs" / random_2).mkdir()
    with FileLock(tmp_path / "outputs" / random_2 / "lock"):
        assert status.main(ask) == 1
    said = capsys.readouterr().out
    assert "1 done, 1 failed, 1 cut off, 1 running" in said and "no such thing" in said


def test_status_refuses_what_does_not_compose(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    assert status.main(["method=nonsense"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error:") and "nonsense" in error and error.count("\n") == 1
