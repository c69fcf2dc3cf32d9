"""A bundle to carry to a machine without a network: this project and the packages it needs, in pieces.

Who unpacks it needs a shell alone. It holds a program, so nothing protects from a bundle that is not one's own; what
the way has damaged or lost is told in one line, before anything is unpacked.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from reprune.errors import UserError
from reprune.files import MIB, write_tar

SOURCE = ("run.py", "pyproject.toml", "constraints.txt", "LICENSE", "README.md", "Makefile", "conf", "experiments",
          "src", "results/runs")
SPARED = ("torch", "torchvision",                       # must fit the machine's GPU: the machine brings them
          "wandb", "matplotlib")                        # of tables, figures and a logger: no run needs them
UNPACK = """\
#!/bin/sh
# sh unpack.sh FOLDER     unpacks all pieces into FOLDER; no network, nothing but a Python with torch is needed
set -e
: "${1:?usage: sh unpack.sh FOLDER}"
here=$(dirname "$0")
whole() {
  for piece in "$here"/bundle.tar.gz.*; do [ -f "$piece" ] || return 1; done
  [ "$(wc -c "$here"/bundle.tar.gz.* | tail -n 1 | { read -r bytes _; echo "$bytes"; })" = BYTES ] || return 1
  case $(cat "$here"/bundle.tar.gz.* | sha256sum) in CHECKSUM*) ;; *) return 1 ;; esac
}
whole || { echo "error: $here holds other pieces than were packed: copy all of them again" >&2; exit 1; }
mkdir -p "$1"
cat "$here"/bundle.tar.gz.* | tar -xz -C "$1"
there=$(cd "$1" && pwd)
echo "cd $1 && PYTHONPATH=$there/src:$there/site ${PYTHON:-python3} -m reprune campaign --minutes 25"
"""


def uv(*args: str) -> str:
    done = subprocess.run([sys.executable, "-m", "uv", "pip", *args], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"uv pip {args[0]}: {' '.join(done.stderr.split())}")
    return done.stdout


def packages(without: Sequence[str] = SPARED) -> list[str]:
    """name==version of all that this project depends on, as installed here, but not of what only `without` needs."""
    tree = uv("tree", "--python", sys.executable, "--package", "reprune", *(f"--prune={name}" for name in without))
    return sorted({f"{name}=={version}" for name, version in re.findall(r"─ (\S+) v(\S+)", tree)})


def pack(folder: Path, part: float, python: str, also: Sequence[Path] = (), root: Path = Path()) -> None:
    """Writes a bundle: unpack.sh, and a tar file in pieces. python: the version its packages are for; "": none."""
    if missing := [path for path in also if not path.exists()]:
        raise UserError(f"--also {missing[0]}: there is no such file or folder")
    paths = [(root / name, name) for name in SOURCE] + [(path, path.resolve().name) for path in also]
    with TemporaryDirectory() as site:
        if python:
            uv("install", "--no-deps", "--target", site, "--python-version", python,
               "--python-platform", "x86_64-manylinux_2_28", *packages())
            paths.append((Path(site), "site"))
        write_tar(folder, "bundle.tar.gz", paths, part)
    size, digest = 0, hashlib.sha256()
    for piece in sorted(folder.glob("bundle.tar.gz.*")):
        size += piece.stat().st_size
        digest.update(piece.read_bytes())
    (folder / "unpack.sh").write_text(UNPACK.replace("BYTES", str(size)).replace("CHECKSUM", digest.hexdigest()))
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size / MIB:8.2f} MiB  {file}")
