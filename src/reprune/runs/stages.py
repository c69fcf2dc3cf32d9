"""What a run leaves on disk while it works: whole or not there, and written by one process at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

import reprune
from reprune.errors import UserError
from reprune.files import GO_ON, intact, leftovers, read_sealed, write_sealed

if TYPE_CHECKING:                       # torch is imported with the first net: a look at keys and places needs none
    from torch import nn


@dataclass(frozen=True)
class Stage:
    """Where a stage of a run leaves its net, and facts that JSON can hold: found again, it is not made again."""

    net: Path
    facts: Path
    unfinished: Path                    # while it is made: a checkpoint to go on from

    def found(self) -> tuple[nn.Module, dict] | None:
        """What has been kept; None where nothing is, or it is damaged. `unfinished` is whole by then, or not there."""
        if self.facts.is_file():
            with or_again(self.net):
                done = self._read()
                with suppress(OSError):
                    self.unfinished.unlink(missing_ok=True)       # of one that was killed right after
                return done
        if self.unfinished.is_file() and not intact(self.unfinished):
            _tell(f"{self.unfinished}: cannot be read, its stage starts again")
            self.unfinished.unlink()
        return None

    def keep(self, net: nn.Module, facts: dict) -> tuple[nn.Module, dict]:
        """-> them, as who finds them will read them"""
        reprune.save(net, self.net)
        write_sealed(self.facts, facts, self.net)                 # last: its presence = finished
        self.unfinished.unlink(missing_ok=True)
        return self._read()

    def _read(self) -> tuple[nn.Module, dict]:
        facts = read_sealed(self.facts, self.net)
        return reprune.load(self.net), facts


@contextmanager
def locked(folder: Path, what: str, *rest: Iterable[Path]) -> Iterator[None]:
    """One process at a time in `folder`, also of several machines that share it: flock, which Linux carries over NFS
    (not every cluster's file system has it switched on). The system frees the lock of a process that dies; the file
    `lock` stays and means nothing by itself. rest: files that killed processes have left elsewhere."""
    lock = FileLock(folder / "lock")
    try:
        with suppress(Timeout):
            lock.acquire(timeout=0)                               # makes the folder, too
        if not lock.is_locked:
            print(f"{what}: another process is at it, waiting", flush=True)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise UserError(f"{lock.lock_file}: cannot be locked ({getattr(error, 'strerror', None) or error}): {GO_ON}"
                        ) from error
    try:
        for file in chain(leftovers(folder), *rest):
            file.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


@contextmanager
def or_again(file: Path, what: str = "cannot be read") -> Iterator[None]:
    """What is damaged is told, and counts as missing."""
    try:
        yield
    except (UserError, OSError, ValueError) as error:
        _tell(f"{file}: {what}, made again ({error})")


@cache
def _tell(line: str) -> None:
    """Once per process: a damaged file is looked at more than once."""
    print(line, flush=True)
