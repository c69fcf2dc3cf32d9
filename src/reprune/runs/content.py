"""Which images a dataset of folders holds: their names say nothing, and another tree may lie under the same name."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reprune.errors import UserError
from reprune.files import read_sealed, write_sealed

FOLDERS = {"reprune.data.imagefolder": "", "reprune.data.smallfolder": "",                          # below data_dir
           "reprune.data.tinyimagenet": "tiny-imagenet-200"}
WHOLE = 2 * 2**30                       # bytes: of larger trees, sizes and times stand for what the files hold
_looks: list[dict[tuple, str | None]] = []              # that are under way: what each has found


@contextmanager
def one_look() -> Iterator[None]:
    """Many keys are asked for at once, and every folder is walked for the first of them alone: ImageNet's 1.3 million
    files take some 20 s. No walk counts for longer, in this process or in another: a file that is written over changes
    no time but its own, so nothing less than all of them tells that a folder is what it was."""
    _looks.append(_looks[-1] if _looks else {})
    try:
        yield
    finally:
        _looks.pop()


def content(dataset: dict, output_dir: Path) -> str | None:
    """16 digits for the images of a dataset of folders; None for any other, and where there are no files."""
    if dataset.get("_target_") not in FOLDERS:
        return None
    root = Path(dataset.get("data_dir") or "data").expanduser().resolve() / FOLDERS[dataset["_target_"]]
    seen, parts = _looks[-1] if _looks else {}, ("train", dataset.get("test", "val"))
    if (root, parts, output_dir) not in seen:
        seen[root, parts, output_dir] = _content(root, parts, output_dir)
    return seen[root, parts, output_dir]


def _content(root: Path, parts: tuple[str, ...], output_dir: Path) -> str | None:
    """They are kept in <output_dir>/data-<hash of the path>.json for as long as the newest time, the number of files
    and their size in all stay."""
    found = sorted(entries(root, parts))
    files = {name: (size, when) for name, size, when in found if size is not None}
    if not files:
        return None
    size = sum(size for size, _ in files.values())
    state = [max(when for *_, when in found), len(files), size]
    kept = output_dir / f"data-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):      # not there, or damaged: made again
        if (known := read_sealed(kept))["state"] == state:
            return known["content"]
    digest = hashlib.sha256()
    for name, facts in files.items():
        digest.update(os.fsencode(name) + b"\0")
        digest.update(_sha256(root / name) if size < WHOLE else b"%d %d\0" % facts)
    with suppress(UserError):                                     # a disk that is read-only: each look makes it again
        write_sealed(kept, {"folder": str(root), "state": state, "content": digest.hexdigest()[:16]})
    return digest.hexdigest()[:16]


def _sha256(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()     # without all of it in memory


def entries(root: Path, parts: tuple[str, ...]) -> Iterator[tuple[str, int | None, int]]:
    """(name below root, its bytes, None for a folder, time of the last change in ns). Raises UserError for a pipe or a
    device: whoever reads it may wait for ever."""
    for part in parts:
        for folder, _, names in os.walk(root / part, followlinks=True):
            for path in [folder, *(os.path.join(folder, name) for name in names)]:
                with suppress(OSError):                           # a link to nowhere: no image
                    now = os.stat(path)
                    if path != folder and not stat.S_ISREG(now.st_mode):
                        raise UserError(f"{path}: is no file, and cannot be read as an image")
                    yield path[len(str(root)) + 1:], None if path == folder else now.st_size, now.st_mtime_ns
