"""What stands beside a run: notes that are none, workers of a launcher, other output folders that publish to one place;
and what is wrong with a config, told before anything trains."""

import json
import os
import subprocess
import sys

import pytest
from conftest import EPOCHS, TINY

from reprune.sweeps import status
from reprune.sweeps.cells import SWEEP, failures


def command(root, *overrides: str, **env: str) -> subprocess.CompletedProcess:
    """python run.py OVERRIDES, at a size of seconds"""
    return subprocess.run([sys.executable, root / "run.py", *overrides], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **env})


@pytest.mark.parametrize("sweep", ["mine", None])
def test_notes_of_failed_cells_that_are_none_are_ignored(sweep, tmp_path, monkeypatch):
    monkeypatch.delenv(SWEEP, raising=False)
    if sweep:
        monkeypatch.setenv(SWEEP, sweep)
    (tmp_path / "failed/folder.json").mkdir(parents=True)
    for n, content in enumerate(("{}", "[]", "null", "3", '"text"', "{", "\x00", json.dumps({"sweep": "other"}))):
        (tmp_path / f"failed/{n}.json").write_text(content)
    assert failures(tmp_path) == []
    whole = {"sweep": sweep, "overrides": "a=b", "error": "broken"}
    (tmp_path / "failed/x.json").write_text(json.dumps(whole))
    assert failures(tmp_path) == [whole]


@pytest.mark.parametrize(("content", "told"), [
    ("{}", "cannot be read"), ("[]", "cannot be read"), ("null", "cannot be read"), ('{"error": [1]}', "[1]"),
    ('{"error": null}', "None")])
def test_status_tells_of_notes_that_are_none(content, told, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(root)
    options = [*TINY, *EPOCHS, f"output_dir={tmp_path}", "method=l1"]
    (cell,) = status.cells(options, root)
    (tmp_path / "failed").mkdir()
    (tmp_path / f"failed/{cell.key}.json").write_text(content)
    assert status.main(options) == 1
    said = capsys.readouterr().out
    assert told in said and "1 cells: 1 failed" in said


def test_a_sweep_goes_on_beside_notes_that_are_none(root, tmp_path):
    (tmp_path / "failed").mkdir()
    for n, content in enumerate(("{}", "[]", "null", "3")):
        (tmp_path / f"failed/{n}.json").write_text(content)
    done = command(root, "-m", *TINY, *EPOCHS, "method=baseline", f"output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "1 cells: 1 done" in done.stdout and not done.stderr
