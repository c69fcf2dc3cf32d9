"""Files that are whole or not there, whatever ends the process that writes them: a signal, a full disk, a power cut."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import tarfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from reprune.errors import UserError

MIB = 2**20
FACTS = 64 * MIB                        # of facts in JSON: there are never so many
GO_ON = "make room there, or make it writable, and type the same command again: what is done is kept"


def writable(name: str, folder: Path) -> None:
    """Raises UserError where `folder`, which a config calls `name`, takes no files. Nothing is made or left there."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with TemporaryFile(dir=there) as file:
            file.write(bytes(8192))
    except OSError as error:
        raise UserError(f"{name}={folder} cannot be written ({error.strerror}): {GO_ON}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to become `path`: a reader sees the old file or the new one, never half of it.

    Raises UserError where the disk is full or does not take it; the old file stays then.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")       # no pid: hosts may share the folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _opened(path.parent) as folder:
            with suppress(OSError):                               # see `abandoned`
                fcntl.flock(folder, fcntl.LOCK_SH)
            try:
                part.touch()
                mode = part.stat().st_mode
                yield part
                part.chmod(mode)                                  # safetensors lets nobody but the owner read
                with _opened(part) as file:
                    os.fsync(file)                                # before its name: else a power loss leaves it empty
                os.replace(part, path)
                os.fsync(folder)
            finally:
                part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:                   # safetensors reports a full disk in its own way
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error}): {GO_ON}") from error


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file or folder. What the system still holds of it in memory goes to the disk with fsync: some milliseconds."""
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def leftovers(folder: Path, name: str = "") -> Iterator[Path]:
    """What killed writers have left of a new `name` (of any file) in a folder; the caller knows that none is alive."""
    yield from folder.glob(f".{name}*.part")
    if not name:
        yield from folder.glob(".tmp??????")                      # safetensors' own


def abandoned(folder: Path, name: str) -> Iterator[Path]:
    """`leftovers` of a folder in which others write, too: none while one does. Writers share a lock on the folder, and
    the system frees that of one that dies; a folder that cannot be locked is left as it is."""
    with suppress(OSError), _opened(folder) as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield from leftovers(folder, name)


def write_tar(folder: Path, name: str, paths: Iterable[tuple[Path, str]], part: float = math.inf,
              limit: float = math.inf) -> list[str]:
    """(file or folder, name in the tar) pairs -> pieces NAME.000, ... of `part` MiB (at least 1 KiB), for `cat NAME.*`.

    -> what is left out: files are taken in their order as long as they fit into `limit` MiB in all."""
    left_out = []

    def take(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if re.search(r"(^|/)(lock|__pycache__|[^/]*\.(egg-info|part))$", info.name):         # of runs, Python, builds
            return None
        if tar.offset + info.size > limit * MIB - 2 * tarfile.RECORDSIZE:     # it ends with some empty blocks
            left_out.append(info.name)
            return None
        return info.replace(uid=0, gid=0, uname="", gname="", mtime=int(info.mtime), deep=False)

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as whole:
        with tarfile.open(fileobj=whole, mode="w:gz" if name.endswith("gz") else "w", dereference=True) as tar:
            for path, called in paths:
                if path.exists():
                    tar.add(path, called, filter=take)
        for old in folder.glob(f"{name}.*"):
            old.unlink()
        size = max(int(min(part * MIB, whole.tell())), 1024)
        count = -(-whole.tell() // size)
        whole.seek(0)
        for number in range(count):                               # as many digits as the last one has, or 3
            (folder / f"{name}.{number:0{max(3, len(str(count - 1)))}}").write_bytes(whole.read(size))
    return left_out


def intact(path: Path) -> bool:
    """Is this a zip file (what torch.save writes) that holds what was written? torch.load ignores its checksums."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:                                             # whatever a damaged file makes of the reader
        return False


def write_text(path: Path, text: str) -> None:
    """In one step, see `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """As `write_text`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_sealed(path: Path, facts: Any, *beside: Path) -> None:
    """JSON with a checksum of itself and of the files beside it."""
    write_json(path, {"facts": facts, "sha256": _seal(facts, *beside)})


def read_sealed(path: Path, *beside: Path) -> Any:
    """The facts. Raises ValueError or OSError where they, or a file beside them, are not as they were written."""
    _ends(path, FACTS)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: not the facts that were written, the file is damaged")
    if not {"facts", "sha256"} & set(content):                    # from before there were checksums
        return content
    if content.get("sha256") != _seal(content.get("facts"), *beside):
        raise ValueError(f"{', '.join(f.name for f in (path, *beside))}: the checksum does not fit, a file is damaged")
    return content["facts"]


def _seal(facts: Any, *files: Path) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for file in files:
        _ends(file)
        with file.open("rb") as opened:
            while part := opened.read(MIB):                       # not all of it in memory
                digest.update(part)
    return digest.hexdigest()


def _ends(path: Path, most: float = math.inf) -> None:
    """Raises ValueError for a pipe, which never would, and for more bytes than there can be."""
    if path.exists() and not path.is_file() or path.is_file() and path.stat().st_size > most:
        raise ValueError(f"{path.name}: is no file of this project")
