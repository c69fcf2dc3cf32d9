"""Kills a small sweep again and again, and takes its disk away, types its command again, and demands the records of one
that nothing disturbed. Then has hostile files read.

    python tests/faults.py --help

Most attempts are forked from this process, which has torch loaded already: a start costs a second, not ten. The others
are the real `python run.py`. Ends with status 1 and says where, if anything differs or is left over.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"                       # the same sums everywhere, and no threads before a fork
sys.dont_write_bytecode = True                            # not among the file operations

import torch  # noqa: E402
from attempts import Attempt, Failure  # noqa: E402
from fault_report import DISKS, KILLS, RACES, SIGNALS, Part, report  # noqa: E402
from filelock import FileLock, Timeout  # noqa: E402
from hostile import hostile  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_resume import result  # noqa: E402

import reprune  # noqa: E402
import reprune.pipeline  # noqa: E402
from reprune.files import write_text  # noqa: E402


class Whole:
    """A sweep that nothing disturbed: what every other one must end with."""

    def __init__(self, folder: Path, methods: list[str], epochs: int):
        self.methods, start = methods, time.monotonic()
        self.lengths = [f"recipe.{part}.epochs={epochs}" for part in ("baseline", "sparse", "recover")]
        attempt = Attempt(self.command(methods), folder)
        if attempt.wait():
            raise Failure(f"{attempt.log}: status {attempt.status} without being killed")
        self.seconds = time.monotonic() - start
        self.records = records(folder)
        self.nets = {key: load_file(folder / "outputs" / key / "net.safetensors") for key in self.records}

    def command(self, methods: list[str]) -> list[str]:
        return [*self.lengths, f"method={','.join(methods)}"]

    def demand(self, folder: Path, methods: list[str]) -> int:
        """The same records, bit-equal nets, nothing half-written or left over, no lock held. -> records compared"""
        found = records(folder)
        if sorted(r["method"] for r in found.values()) != sorted(methods):
            raise Failure(f"{folder}: records of {sorted(r['method'] for r in found.values())}, not of {methods}")
        for key, record in found.items():
            if result(record) != result(self.records[key]):
                raise Failure(f"{folder}: record {key} differs from that of the sweep that was not killed")
            net = load_file(folder / "outputs" / key / "net.safetensors")
            if net.keys() != self.nets[key].keys() or any(not torch.equal(net[n], self.nets[key][n]) for n in net):
                raise Failure(f"{folder}: the net of {key} is not bit-equal")
            reprune.load(folder / "outputs" / key / "net.safetensors")
        for file in [f for f in (folder / "outputs").rglob("*") if f.is_file()]:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.name == "lock":
                free(file)
            elif file.name not in ("net.safetensors", "multirun.yaml"):
                raise Failure(f"{file}: left over")
        if left := list((folder / "outputs").glob("*/stages")):
            raise Failure(f"{left[0]}: left over")
        return len(found)


def free(lock: Path) -> None:
    try:
        FileLock(lock, timeout=0).acquire().lock.release()
    except Timeout:
        raise Failure(f"{lock}: held by nobody that lives") from None


def records(folder: Path) -> dict[str, dict]:
    return {f.parent.name: json.loads(f.read_text()) for f in (folder / "outputs").glob("*/record.json")}


def finish(attempts: list[Attempt]) -> None:
    for attempt in attempts:
        if attempt.wait():
            raise Failure(f"{attempt.log}: status {attempt.status}")


def killed_at_random(whole: Whole, folder: Path, part: Part, rng: random.Random, mean: float, real: bool = False,
                     most: int = 12) -> None:
    """A sweep on a machine that dies once in `mean` seconds, whatever it does; left alone after `most` kills."""
    methods = rng.sample(whole.methods, 2)
    for number in range(most + 1):
        what, delay = rng.choice(SIGNALS), rng.expovariate(1 / mean)
        attempt = Attempt(whole.command(methods), folder, real=real)
        if attempt.wait(*[delay] * (number < most)) is None:
            attempt.send(what)
            if attempt.status:                                    # else it was at its end
                part.killed(what, attempt)
        elif attempt.status:
            raise Failure(f"{attempt.log}: status {attempt.status} without being killed")
        if attempt.status == 0:
            break
    part.ended(whole.demand(folder, methods), folder, number + 1)


def killed_at_operations(whole: Whole, folder: Path, part: Part, most: int) -> None:
    """One kill per sweep, right before a file operation: up to `most`, evenly over all that an undisturbed one does."""
    command = whole.command(["hgsr"])
    counting = Attempt(command, folder / "undisturbed")
    finish([counting])
    total = int(counting.count.read_text())
    for number in range(min(most, total)):
        point = 1 + number * total // min(most, total)
        place = folder / str(point)
        attempt = Attempt(command, place, point=point)
        if attempt.wait() != -signal.SIGKILL:
            raise Failure(f"{attempt.log}: status {attempt.status}, was to be killed at operation {point} of {total}")
        part.killed(signal.SIGKILL, attempt)
        finish([Attempt(command, place)])
        part.ended(whole.demand(place, ["hgsr"]), place, 2)
        shutil.rmtree(place)


def race(whole: Whole, folder: Path, part: Part, methods: list[str], kill: bool) -> None:
    """One process per method, all at once: they need the same baseline, and one of them trains it. kill: that one dies
    while it does, and another goes on from its checkpoint."""
    point, name = (2, "unfinished.ckpt") if kill else (0, None)   # the second epoch of the baseline is to be saved
    attempts = [Attempt(whole.command([method]), folder, point=point, name=name) for method in methods]
    if kill:
        (holder,) = (n for n, attempt in enumerate(attempts) if attempt.wait() == -signal.SIGKILL)
        part.killed(signal.SIGKILL, attempts[holder])
        finish([a for n, a in enumerate(attempts) if n != holder])
        attempts.append(Attempt(whole.command([methods[holder]]), folder))
        finish(attempts[-1:])
    else:
        finish(attempts)
    said = [line for a in attempts for line in a.log.read_text().splitlines() if line.startswith("baseline: ")]
    if len(said) != 1 + kill or kill != any("going on where it was cut off" in line for line in said):
        raise Failure(f"{folder}: the baseline was to be trained once: {said}")
    part.ended(whole.demand(folder, sorted(set(methods))), folder, len(attempts))


def without_room(whole: Whole, folder: Path, part: Part, rng: random.Random, read_only: bool) -> None:
    """A sweep on a small disk that fills up, or one that dies and finds its disk read-only; then there is room."""
    methods, disk = rng.sample(whole.methods, 2), folder / "outputs"
    mount(disk, "size=64m" if read_only else f"size={rng.randrange(100, 1200)}k")
    try:
        attempt = Attempt(whole.command(methods), folder)
        if read_only:
            if attempt.wait(rng.expovariate(2 / whole.seconds)) is None:
                attempt.send(signal.SIGKILL)                      # while it lives, its lock keeps the disk as it is
            if not mount(disk, "remount", "ro"):
                raise Failure(f"{disk}: cannot be made read-only")
            attempt = Attempt(whole.command(methods), folder)
        failed = bool(attempt.wait())
        if failed and "Traceback" in attempt.log.read_text():
            raise Failure(f"{attempt.log}: more than a line")
        mount(disk, "remount", "rw", "size=64m")
        finish([Attempt(whole.command(methods), folder)])
        part.full += failed
        part.ended(whole.demand(folder, methods), folder, 2 + read_only)
    finally:
        subprocess.run(["umount", disk], check=True)


def mountable(disk: Path) -> bool:
    """Only root may, and not in every container."""
    return mount(disk, "size=64k") and not subprocess.run(["umount", disk]).returncode


def mount(disk: Path, *options: str) -> bool:
    disk.mkdir(parents=True, exist_ok=True)
    return not subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", disk],
                              capture_output=True).returncode


def drive(out: Path, args: argparse.Namespace) -> list[Part]:
    """All parts, in folders below `out`."""
    rng = random.Random(args.seed)
    whole = Whole(out / "whole", args.methods, args.epochs)
    mean = whole.seconds / len(args.methods) / 2                  # of a sweep of two cells, a quarter
    parts = [Part("at random, forked attempts", KILLS), Part("at random, `python run.py`", KILLS),
             Part("at a file operation", KILLS), Part("one baseline", RACES), Part("its trainer killed", RACES),
             Part("the same run", RACES), Part("full", DISKS), Part("read-only", DISKS)]

    def todo() -> Iterator[Callable[[Path], None]]:
        while parts[0].kills.total() < args.kills:
            yield lambda at: killed_at_random(whole, at, parts[0], rng, mean)
        while parts[1].kills.total() < args.command_kills:
            yield lambda at: killed_at_random(whole, at, parts[1], rng, mean + args.start, real=True)
        if args.operations:
            yield lambda at: killed_at_operations(whole, at, parts[2], args.operations)
        for n in args.together:
            yield lambda at: race(whole, at, parts[3], args.methods[:n], kill=False)
        for n in args.trainer_killed:
            yield lambda at: race(whole, at, parts[4], args.methods[:n], kill=True)
        for n in args.same:
            yield lambda at: race(whole, at, parts[5], ["l1"] * n, kill=False)
        for n in range(args.disks if mountable(out / "disk") else 0):
            yield lambda at: without_room(whole, at, parts[6 + n % 2], rng, read_only=bool(n % 2))

    for number, do in enumerate(todo()):
        do(out / str(number))
        print("; ".join(f"{p.name}: {p.attempts} attempts, {p.kills.total()} kills, {p.records} records identical"
                        for p in parts if p.sweeps), flush=True)
    return [p for p in parts if p.sweeps]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="at random moments, of forked attempts (at least)")
    parser.add_argument("--command-kills", type=int, default=6, help="the same of `python run.py`")
    parser.add_argument("--start", type=float, default=5, help="seconds that `python run.py` takes longer to start")
    parser.add_argument("--operations", type=int, default=20, help="kills right before a file operation")
    several = {"type": int, "nargs": "*", "default": [2, 4]}
    parser.add_argument("--together", **several, help="processes at once that need one baseline")
    parser.add_argument("--trainer-killed", **several, help="the same, and the one that trains it is killed")
    parser.add_argument("--same", **several, help="processes at once with the same run")
    parser.add_argument("--disks", type=int, default=8, help="disks that fill up or become read-only, if root types it")
    parser.add_argument("--hostile", type=int, default=6, help="random, cut and changed ones of each kind; 0: none")
    parser.add_argument("--methods", nargs="*", default=["hgsr", "l1", "random", "sfp"], help="at least two, with hgsr")
    parser.add_argument("--epochs", type=int, default=4, help="of every stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="the Markdown file to write")
    args = parser.parse_args()
    out, start = Path(tempfile.mkdtemp(prefix="reprune-faults-")), time.monotonic()
    try:
        counts = hostile(out / "hostile", args.seed, args.hostile) if args.hostile else []
        parts = drive(out, args)
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    shutil.rmtree(out)
    if args.report:
        write_text(args.report, report(parts, counts, time.monotonic() - start, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
