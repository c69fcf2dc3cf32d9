"""`python run.py` in a process that has its imports when it starts: they take longer than a small run."""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from conftest import ROOT
from moments import before

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["reprune.pipeline", "reprune.sweeps", "hydra"])


def start(*overrides, cwd: Path, out: Path, err: Path | None = None, dies_at: tuple[str, int] | None = None):
    """Types the command in a folder; what it says goes to the files. -> the process

    dies_at: a name of files and a number: right before so many of them have been put in place, it kills itself."""
    argv = [str(word) for word in (ROOT / "run.py", *overrides)]
    for file in (out, err or out):
        file.touch()
    process = SERVER.Process(target=_type, args=(argv, cwd, dict(os.environ), out, err or out, dies_at))
    process.start()
    return process


def run(*overrides, cwd: Path) -> subprocess.CompletedProcess:
    """Types the command and waits for its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = start(*overrides, cwd=cwd, out=out, err=err)
        process.join()
        return subprocess.CompletedProcess(overrides, process.exitcode, out.read_text(), err.read_text())


def _type(argv: list[str], cwd: Path, env: dict[str, str], out: Path, err: Path, dies_at) -> None:
    for file, stream in ((out, sys.stdout), (err, sys.stderr)):
        stream.flush()
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream.fileno())
        stream.reconfigure(line_buffering=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None                                       # that of the server
    if dies_at is not None:
        name, number = dies_at
        before(number, lambda: os.kill(os.getpid(), signal.SIGKILL), name)
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()                                   # multiprocessing ends without them

