"""What stands beside a run: notes that are none, workers of a launcher, other output folders that publish to one place;
and what is wrong with a config, told before anything trains."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import command
import pytest
from conftest import EPOCHS, TINY

from reprune.__main__ import main
from reprune.errors import UserError
from reprune.files import replacing, writable
from reprune.pipeline import run
from reprune.results.rows import read_all
from reprune.runs.checks import check
from reprune.runs.store import Store
from reprune.sweeps import status
from reprune.sweeps.cells import SWEEP, failures


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
    assert main(["status", *options]) == 1
    said = capsys.readouterr().out
    assert told in said and "1 cells: 1 failed" in said


def test_a_sweep_goes_on_beside_notes_that_are_none(root, tmp_path):
    (tmp_path / "failed").mkdir()
    for n, content in enumerate(("{}", "[]", "null", "3")):
        (tmp_path / f"failed/{n}.json").write_text(content)
    done = command.run("-m", *TINY, *EPOCHS, "method=baseline", f"output_dir={tmp_path}", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "1 cells: 1 done" in done.stdout and not done.stderr


# ---------------------------------------------------------------- workers

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def test_workers_run_wherever_the_source_comes_first(root, tmp_path):
    """Plugins are found in another order then."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install -e '.[launchers]'")
    words = [sys.executable, root / "run.py", "-m", *TINY, *EPOCHS, "method=baseline", "seed=0,1", *JOBLIB]
    done = subprocess.run([*words, f"output_dir={tmp_path}"], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "src")})
    assert done.returncode == 0, done.stderr
    assert "2 cells: 2 done" in done.stdout and len([*tmp_path.glob("*/record.json")]) == 2


def alive(mark: bytes) -> list[str]:
    """The processes with this in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):                                   # of another user, or it has ended
            if mark in (place / "environ").read_bytes():
                found.append(place.name)
    return found


def until(met: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 200                                  # below the 300 s that joblib leaves an idle worker
    while not met():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")
def test_workers_end_with_a_sweep_that_is_killed_and_save(root, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install -e '.[launchers]'")
    argv = ["-m", *TINY, "method=baseline", "recipe.baseline.epochs=1,100000", *JOBLIB, f"output_dir={tmp_path}/out"]
    mark = f"REPRUNE_MARK={tmp_path}"
    with (tmp_path / "log").open("w") as log:
        sweep = subprocess.Popen([sys.executable, root / "run.py", *argv], stdout=log, stderr=log, cwd=tmp_path,
                                 env={**os.environ, **dict([mark.split("=")]), "PYTHONUNBUFFERED": "1"})
    try:
        until(lambda: [*tmp_path.glob("out/*/record.json")] and "100000 epochs" in (tmp_path / "log").read_text(),
              "one run has ended, one trains")
        sweep.kill()
        sweep.wait()
        until(lambda: not alive(mark.encode()), "all workers have ended")
        assert [*tmp_path.glob("out/baselines/*/unfinished.ckpt")]
    finally:
        for pid in alive(mark.encode()):
            os.kill(int(pid), signal.SIGKILL)


# ---------------------------------------------------------------- one results folder

def test_what_another_output_folder_publishes_is_left_to_it_and_what_is_left_over_goes(configure, tmp_path):
    one, other = (Store(configure("method=l1", f"output_dir={tmp_path}/{name}")) for name in ("one", "other"))
    assert one.published == other.published
    with one.alone(), replacing(one.published) as part:
        with other.alone():
            assert part.is_file()
        part.write_text("whole")
    assert one.published.read_text() == "whole"
    left = one.published.with_name(f".{one.published.name}.0123456789ab.part")        # of one that was killed
    left.write_text("half")
    with other.alone():
        assert not left.exists() and one.published.exists()


def test_a_writer_that_is_killed_holds_nothing(configure, tmp_path):
    store = Store(configure("method=l1"))
    code = ("import os, sys, signal; from pathlib import Path; from reprune.files import replacing\n"
            "with replacing(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code, store.published]).returncode == -signal.SIGKILL
    (left,) = store.published.parent.glob(".*.part")
    with store.alone():
        assert not left.exists()


@pytest.mark.parametrize("moment", ["before a look", "before it is read"])
def test_a_record_that_goes_while_tables_read_is_not_there(moment, tmp_path):
    files, errors = [tmp_path / name for name in "ab"], []
    for file in files:
        file.write_text(file.name)

    def read(file: Path) -> str:
        if file.name == "a":
            files[1 if moment == "before a look" else 0].unlink()
        return file.read_text()

    assert read_all(files, read, tmp_path, errors) == (["a"] if moment == "before a look" else ["b"])
    assert errors == []


# ---------------------------------------------------------------- told before anything trains

@pytest.mark.parametrize(("override", "told"), [
    ("seed=abc", "seed must be a whole number from 0 up, not 'abc'"), ("seed=-1", "seed must be .* not -1"),
    ("seed=1.5", "seed must be .* not 1.5"), ("seed=true", "seed must be .* not True"),
    ("model.classes=5", "model.classes must be .* from 10 up, the classes of dataset 'digits', not 5"),
    ("model.classes=abc", "model.classes must be a whole number .* not 'abc'"),
    ("dataset=cifar10 data_dir=/etc/passwd", "data_dir=/etc/passwd is no folder"),
    ("experiments=mitsuno2020/own-digits-plain results_dir=/proc/none", "results_dir=/proc/none cannot be written"),
    ("experiments=mitsuno2020/own-digits-plain results_dir=/etc/passwd", "results_dir=/etc/passwd cannot be written")])
def test_what_no_run_can_use_is_one_line_before_anything_trains(override, told, root, tmp_path):
    done = command.run(*TINY, *EPOCHS, *override.split(), f"output_dir={tmp_path}", cwd=root)
    assert done.returncode == 1 and "epoch" not in done.stdout
    assert re.match(f"error: .*{told}", done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert not [*tmp_path.glob("*/record.json")]


def test_only_what_will_be_written_must_be_writable(configure):
    nowhere = "results_dir=/proc/none"
    run(configure("method=baseline"))
    for row in (None, "some/row"):                                # a run of no row; a row that is finished
        cfg = configure("method=baseline", nowhere)
        cfg.experiment = row
        check(cfg)
    cfg.force = True
    with pytest.raises(UserError, match="^results_dir=/proc/none cannot be written"):
        check(cfg)


def test_what_is_looked_at_stays_as_it_is(tmp_path):
    writable("output_dir", tmp_path / "a/b")
    assert not [*tmp_path.iterdir()]
