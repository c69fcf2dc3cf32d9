"""What a bare machine without a network needs to run rows: this source, and wheels of all but torch, in parts.

A bundle is a folder: bundle.tar.000, ... (one tar file, cut into pieces), unpack.sh, and SIZES.txt.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from packaging.requirements import Requirement

from reprune.errors import UserError

MIB = 2**20
SOURCE = ("run.py", "pyproject.toml", "constraints.txt", "LICENSE", "README.md", "Makefile", "conf", "experiments",
          "src", "results/runs")
THERE = ("torch", "torchvision")                        # must fit the machine's GPU: the machine brings them
SPARED = ("wandb", "duckdb", "matplotlib")              # of tables, figures and a logger: no run needs them
LINUX = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)] + ["manylinux2014_x86_64"]
UNPACK = """\
#!/bin/sh
# sh unpack.sh FOLDER     unpacks all parts into FOLDER, and installs the wheels into FOLDER/site, without a network
set -e
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:?usage: sh unpack.sh FOLDER}"
cat "$here"/bundle.tar.* | tar -x -C "$1"
if [ -d "$1/wheels" ]; then
    ${PYTHON:-python3} -m pip install --quiet --no-index --no-deps --no-compile --target "$1/site" "$1"/wheels/*
fi
echo "cd $1 && PYTHONPATH=$(cd "$1" && pwd)/site ${PYTHON:-python3} experiments/campaign.py --minutes 25"
"""


class Parts:
    """A file to write to that is cut into pieces: NAME.000, NAME.001, ... of `size` bytes each."""

    def __init__(self, folder: Path, name: str, size: int):
        self.folder, self.name, self.size = folder, name, size
        self.files: list[Path] = []
        self.file: BinaryIO | None = None
        self.room = 0
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{name}.[0-9][0-9][0-9]"):         # `cat NAME.*` would take them in
            old.unlink()

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while len(view):
            if not self.room:
                self.close()
                self.files.append(self.folder / f"{self.name}.{len(self.files):03d}")
                self.file, self.room = self.files[-1].open("wb"), self.size
            taken = self.file.write(view[:self.room])
            self.room, view = self.room - taken, view[taken:]
        return len(data)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def write_tar(folder: Path, name: str, files: Iterable[tuple[Path, str]], part: int, limit: float = float("inf")
              ) -> tuple[list[Path], list[str]]:
    """(file, name in the tar) pairs -> pieces of at most `part` bytes, and the names left out: files are taken in their
    order as long as they fit into `limit` bytes in all."""
    parts, total, left_out = Parts(folder, name, part), 2 * 10240, []         # a tar ends with some empty blocks
    with tarfile.open(fileobj=parts, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for file, called in files:
            need = 512 + -(-file.stat().st_size // 512) * 512
            if total + need > limit:
                left_out.append(called)
                continue
            total += need
            info = tar.gettarinfo(file, called)
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            with file.open("rb") as content:
                tar.addfile(info, content)
    parts.close()
    return parts.files, left_out


def below(path: Path, called: str) -> list[tuple[Path, str]]:
    """The files of a folder, or a file itself, without what Python and builds leave behind."""
    if path.is_file():
        return [(path, called)]
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "lock")
    return [(file, f"{called}/{at}") for file in files
            if not re.search(r"__pycache__|\.egg-info|\.part$", at := file.relative_to(path).as_posix())]


def packages(root: Path, without: Sequence[str] = (*THERE, *SPARED)) -> dict[str, str]:
    """{name: version} of all that the project depends on, as installed here, but not of what only `without` needs."""
    wanted = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    left_out, found, todo = set(map(canonical, without)), {}, [(line, frozenset()) for line in wanted]
    seen: set[tuple[str, frozenset]] = set()
    while todo:
        line, extras = todo.pop()
        need = Requirement(line)
        name = canonical(need.name)
        if need.marker is not None and not any(need.marker.evaluate({"extra": e}) for e in ("", *extras)):
            continue
        if name in left_out or (name, frozenset(need.extras)) in seen:
            continue
        seen.add((name, frozenset(need.extras)))
        try:
            there = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"{name}, which this project depends on, is not installed here: make setup") from None
        found[name] = there.version
        todo += [(text, frozenset(need.extras)) for text in there.requires or []]
    return dict(sorted(found.items()))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def download(wanted: dict[str, str], python: str, folder: Path) -> None:
    """Wheels for a Python on Linux; what has none (plain Python, mostly) is built here."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python,
              *(word for name in LINUX for word in ("--platform", name))]
    for name, version in wanted.items():
        exact = ["--no-deps", f"{name}=={version}"]
        if subprocess.run([*pip, "download", *target, *exact, "-d", folder], capture_output=True).returncode:
            built = subprocess.run([*pip, "wheel", *exact, "-w", folder], capture_output=True, text=True)
            if built.returncode or not list(folder.glob(f"{name.replace('-', '_')}-{version}-*none-any.whl")):
                told = (built.stderr.strip().splitlines() or ["it can only be built on such a machine"])[-1]
                raise UserError(f"no wheel of {name}=={version} for Python {python} on Linux: {told}")


def pack(root: Path, folder: Path, part: float, python: str | None = None,
         without: Sequence[str] = (*THERE, *SPARED), also: Sequence[Path] = ()) -> str:
    """Writes a bundle. python: version its wheels are for, None: no wheels. part: MiB. -> what it holds, in lines"""
    if missing := [path for path in also if not path.exists()]:
        raise UserError(f"--also {missing[0]}: there is no such file or folder")
    files = [pair for name in SOURCE if (root / name).exists() for pair in below(root / name, name)]
    for path in also:
        files += below(path, path.resolve().name)
    with tempfile.TemporaryDirectory() as place:
        if python:
            download(packages(root, without), python, Path(place))
        wheels = below(Path(place), "wheels")
        sizes = [f"{file.stat().st_size / MIB:8.2f}  {name}" for file, name in wheels]
        for top in dict.fromkeys(name.split("/")[0] for _, name in files):
            size = sum(file.stat().st_size for file, name in files if name.split("/")[0] == top)
            sizes.append(f"{size / MIB:8.2f}  {top}")
        made, _ = write_tar(folder, "bundle.tar", files + wheels, int(part * MIB))
    (folder / "unpack.sh").write_text(UNPACK)
    sizes = ["     MiB", *sorted(sizes, reverse=True), *(f"{f.stat().st_size / MIB:8.2f}  in {f.name}" for f in made)]
    (folder / "SIZES.txt").write_text("\n".join(sizes) + "\n")
    return "\n".join(sizes)
