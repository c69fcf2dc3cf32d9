"""Runs the rows of experiments/ that have not run, in order of value, for so many minutes; the next time goes on.

    python experiments/campaign.py --minutes 25                     # all rows, seeds 0 to 2
    python experiments/campaign.py --minutes 25 --rows 'li2017/*,half/*' --seeds 0 --at-once 4 recipe=quick
    python experiments/campaign.py --minutes 9 --dry-run            # what it would run, in which order, how long each
    python experiments/campaign.py pack FOLDER                      # what a machine without a network needs; see --help

Every run is a `python run.py experiments=ROW seed=N`, with the overrides of run.py that are given; its output is in
<output_dir>/campaign/<key>.log. Towards the end, or at Ctrl-C, runs are told to save and stop. A run that fails does
not stop the others, but makes the exit status 1.

First goes on what is half done; then come, one seed each, claims at the paper's whole recipe that fit into the time,
and their controls; then the missing seeds of both, then other rows. What does not fit is begun last, and goes on next
time.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import time
import tomllib
from pathlib import Path

STARTED = time.monotonic()              # before the imports that take seconds
ROOT = Path(__file__).resolve().parent.parent


def on_a_bare_machine() -> None:
    """Where this project is not installed, it is found in src/; records hold its version, so there is one."""
    try:
        importlib.metadata.version("reprune")
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        about = ROOT / "src" / "reprune.egg-info" / "PKG-INFO"    # where an editable install has it
        about.parent.mkdir(exist_ok=True)
        about.write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
        sys.path.insert(0, str(ROOT / "src"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))


def seeds(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise ValueError
    return numbers


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="experiments/campaign.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=positive, required=True, help="from start to end, saving included")
    parser.add_argument("--rows", default="*", help="ids or patterns, with commas; all rows if not given")
    parser.add_argument("--seeds", type=seeds, default=[0, 1, 2], help="with commas; 0,1,2 if not given")
    parser.add_argument("--at-once", type=count, default=1, help="runs side by side; they share the GPUs or the cores")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run")
    parser.add_argument("--out", type=Path, help="folder for records.tar, and for what is unfinished and the nets: "
                                                 "state.tar.000, ...")
    parser.add_argument("--limit", type=positive, default=200, help="MiB of state in --out")
    parser.add_argument("--part", type=positive, default=60, help="MiB of one piece of it")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of run.py")
    args = parser.parse_intermixed_args(argv)
    if wrong := [o for o in args.overrides if "=" not in o and not o.startswith("~")]:
        parser.error(f"{wrong[0]!r} is no override of run.py: write KEY=VALUE (or: pack FOLDER)")
    return args


def pack_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="experiments/campaign.py pack", description="Makes a bundle to carry to a "
                                     "machine with torch, torchvision and pip. There: sh FOLDER/unpack.sh ANOTHER")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", type=positive, default=60, help="MiB of one piece")
    parser.add_argument("--python", default=".".join(map(str, sys.version_info[:2])), help="of that machine: 3.12")
    parser.add_argument("--no-wheels", action="store_true", help="the source alone")
    parser.add_argument("--without", default="", help="packages that the machine has, with commas")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="more: outputs, datasets, weights")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    on_a_bare_machine()
    from reprune.errors import UserError

    try:
        if argv[:1] == ["pack"]:
            from reprune.sweeps.bundle import SPARED, THERE, pack

            args = pack_arguments(argv[1:])
            without = (*THERE, *SPARED, *filter(None, args.without.split(",")))
            print(pack(ROOT, args.folder, args.part, None if args.no_wheels else args.python, without, args.also))
            print(f"there: sh {args.folder.name}/unpack.sh FOLDER")
            return 0
        args = arguments(argv)
        from reprune.sweeps.running import Campaign

        return Campaign(ROOT, args, STARTED).run(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
