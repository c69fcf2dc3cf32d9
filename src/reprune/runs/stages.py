"""What a run leaves on disk while it works: whole or not there, and written by one process at a time."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

import reprune
from reprune.errors import UserError
from reprune.files import GO_ON, intact, leftovers, read_sealed, write_json, write_sealed
from reprune.runs.fingerprint import changed

if TYPE_CHECKING:                       # torch is imported with the first net: a look at keys and places needs none
    from torch import nn


@dataclass(frozen=True)
class Stage:
    """Where a stage of a run leaves its net, and facts that JSON can hold: found again, it is not made again."""

    net: Path
    facts: Path
    unfinished: Path                    # while it is made: a checkpoint to go on from
    key: str                            # of its run, or of a baseline that runs share
    code: dict[str, str]                # that makes it now: see `fingerprint`

    def found(self) -> tuple[nn.Module, dict] | None:
        """What has been kept; None where nothing is, it is damaged, or other code has made it. `unfinished` is whole
        by then, and of this code, or not there."""
        if self.facts.is_file():
            with or_again(self.net):
                if (done := self._read()) is not None:
                    with suppress(OSError):
                        self._forget()                            # of one that was killed right after
                    return done
        if self.unfinished.is_file() and not self._goes_on():
            self.unfinished.unlink()
        write_json(self._begun, self.code)
        return None

    def keep(self, net: nn.Module, facts: dict) -> tuple[nn.Module, dict]:
        """-> them, as who finds them will read them"""
        reprune.save(net, self.net)
        write_facts(self.facts, facts, self.code, self.net)       # last: its presence = finished
        self._forget()
        return self._read()

    def _read(self) -> tuple[nn.Module, dict] | None:
        facts = read_facts(self.facts, self.key, self.code, self.net)
        return None if facts is None else (reprune.load(self.net), facts)

    @property
    def _begun(self) -> Path:
        """Says which code `unfinished` is of."""
        return self.unfinished.with_name(f".{self.unfinished.stem}.code")

    def _forget(self) -> None:
        self.unfinished.unlink(missing_ok=True)
        self._begun.unlink(missing_ok=True)

    def _goes_on(self) -> bool:
        """From `unfinished`; if not, a line says why."""
        if not intact(self.unfinished) or not checkpoint(self.unfinished):
            tell(f"{self.unfinished}: cannot be read, its stage starts again")
            return False
        try:
            code = json.loads(self._begun.read_text(encoding="utf-8"))
        except (OSError, ValueError):                             # from before it was written
            code = None
        return same_code(self.unfinished, self.key, code, self.code)


def checkpoint(file: Path) -> bool:
    """Is this intact zip what Lightning saves of a training? torch, which would tell, is not imported here."""
    with zipfile.ZipFile(file) as content:
        pickles = [name for name in content.namelist() if name.endswith("/data.pkl")]
        text = content.read(pickles[0]) if pickles else b""
    return all(part in text for part in (b"state_dict", b"optimizer_states", b"loops", b"callbacks", b"Unfinished"))


def write_facts(file: Path, facts: Any, code: dict[str, str], *beside: Path) -> None:
    """Sealed, with the files beside them and the code that has made them."""
    write_sealed(file, {"code": code, "facts": facts}, *beside)


def read_facts(file: Path, key: str, code: dict[str, str], *beside: Path) -> Any:
    """None, with a line, where other code has made them. Raises what `read_sealed` does."""
    content = read_sealed(file, *beside)
    content = content if isinstance(content, dict) else {}        # from before the code was written
    return content["facts"] if same_code(file, key, content.get("code"), code) else None


def same_code(file: Path, key: str, code: Any, now: dict[str, str]) -> bool:
    """Is `file` of today's code? If not, a line says what differs."""
    if parts := changed(code, now):
        tell(f"{key}: made with other code ({parts}), made again", file.parent, *now.values())
    return not parts


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
        tell(f"{file}: {what}, made again ({error})")


@cache
def tell(line: str, *about: Any) -> None:
    """Once per process and what it is about: a damaged file is looked at more than once."""
    print(line, flush=True)
