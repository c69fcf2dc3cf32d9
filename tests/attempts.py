"""Starts of the command that can be killed: at any moment, or right before one of their file operations."""

import os
import re
import runpy
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

from conftest import HANG, ROOT, TINY
from moments import before, first

STEPS = ["method/rounds=steps", "method.rounds.n=2"]


class Failure(Exception):
    """What must never happen."""


class Attempt:
    """One start of `python run.py -m OVERRIDES`, in a process group of its own, its output in a file."""

    def __init__(self, overrides: list[str], folder: Path, real: bool = False, point: int = 0, name: str | None = None):
        """point: of the file operation at which it kills itself, if it is the first in this folder to get that far; 0:
        it only counts them. name: only of files of this name, when they are put in place."""
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{len(list(folder.glob('*.log'))):03}.log"
        self.count = self.log.with_suffix(".count")
        self.log.touch()
        sys.stdout.flush()
        self.pid, self.status = os.fork(), None
        if not self.pid:
            self._run(overrides, folder, real, point, name)
        with suppress(PermissionError):                           # it has done so itself, and is another program now
            os.setpgid(self.pid, self.pid)

    def _run(self, overrides: list[str], folder: Path, real: bool, point: int, name: str | None) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell's background job ignores it
            (folder / "tmp").mkdir(exist_ok=True)
            os.environ.update(TMPDIR=str(folder / "tmp"), PYTHONUNBUFFERED="1")
            tempfile.tempdir = None                               # that of the parent
            log = os.open(self.log, os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(folder)
            argv = [str(ROOT / "run.py"), "-m", *TINY, *STEPS, f"output_dir={folder}/outputs", *overrides]
            if real:
                os.execv(sys.executable, [sys.executable, *argv])
            sys.argv, sys.stdout, sys.stderr = argv, os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            operations = before(point, lambda: first(folder / "killed") and os.kill(os.getpid(), signal.SIGKILL), name)
            runpy.run_path(argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            if not code:
                self.count.write_text(str(operations[0]))
            os._exit(code)

    def wait(self, seconds: float = HANG) -> int | None:
        """-> its exit status (-signal, where one ended it), None if it still runs after so many seconds"""
        until = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                break
            else:
                time.sleep(0.005)
        return self.status

    def send(self, what: signal.Signals) -> None:
        """To it and all that it has started. Raises Failure if it does not end soon; at its end it may end well."""
        os.killpg(self.pid, what)
        if self.wait() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()
            raise Failure(f"{self.log}: goes on {HANG} s after {what.name}")

    def moment(self) -> str:
        """What it was doing when its output ended."""
        said = re.findall(r"^(?:(baseline|sparse|recover)[-\d]*: \d+ epoch|(record) )", self.log.read_text(), re.M)
        return "start-up" if not said else said[-1][0] or "between runs"

