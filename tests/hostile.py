"""Files of strangers by the hundred: each is read in a process of its own, which ends with a result or one line."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path

import torch
from attempts import Failure
from conftest import HANG, ROOT
from project import project, record
from safetensors.torch import load_file, save_file
from test_faults import flip, truncate
from test_hostile import MODEL, TEXTS, write_bombs
from test_properties_of_files import packed, places, unpack
from trees import photos, write_tree

import reprune
from reprune import models
from reprune.errors import UserError
from reprune.models import checkpoint
from reprune.results import show
from reprune.results.tables import tables
from reprune.runs.content import content
from reprune.runs.stages import Stage
from reprune.sweeps import campaign, cells, status

ROW = """\
# @package _global_
# Someone 2020, Table 1, Net-A.    python run.py experiments=some2020/A
defaults:
  - override /method: l1
  - override /model: resnet8
method: {allocation: {rate: 0.5}}
"""
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in pairwise("abcdefghijk"))
HUGE = 3 * 2**30


@dataclass
class Count:
    """Of one kind of files."""

    kind: str
    files: int = 0
    results: int = 0
    lines: int = 0
    seconds: float = 0.0                                          # the longest, of a processor
    mib: float = 0.0                                              # the most that one took


def evil(ran: Path) -> list:
    """Values that run a command, draw on a terminal, open HTML or fill a memory, if someone lets them."""
    touch = f"touch {ran}/it"
    return [f"$({touch})", f"`{touch}`", f"x; {touch}", f"'; {touch} #", "\x1b]0;x\x07\x1b[31m", "a\nb", "=cmd()|x",
            "<script>alert(1)</script>", "../../etc/passwd", "\ud800", 1e999, -1, 10**400, float("nan"), "9" * 10**5,
            {"_target_": "os.system", "command": touch}, [{"_target_": "builtins.eval", "_args_": [touch]}],
            {"_target_": "subprocess.run", "args": touch, "shell": True}, "${oc.env:HOME}", "${oc.decode:${x}}", None]


class Runs:
    """A pickle that runs a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def bodies(good: bytes, ran: Path, rng: random.Random, number: int) -> Iterator[bytes | None | int]:
    """What a file may hold in place of `good`: bytes; None: it is a pipe; a number: so many bytes without any on the
    disk."""
    yield from (b"", None, HUGE, pickle.dumps(Runs(f"touch {ran}/it")), flip(good), truncate(good), BOMB.encode())
    yield from (text.encode() for text in TEXTS.values())
    for _ in range(number):
        yield rng.randbytes(rng.randrange(1, 400))
        yield good[:rng.randrange(len(good))]
        at = rng.randrange(len(good))
        yield good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1:]
    with suppress(ValueError):                                    # JSON: anything anywhere
        for spot in list(places(json.loads(good)))[1:]:
            for value in rng.sample(evil(ran), 1):
                node = root = json.loads(good)
                for name in spot[:-1]:
                    node = node[name]
                node[spot[-1]] = value
                yield json.dumps(root).encode()
    if good.startswith(b"# @package"):                            # YAML
        for value in evil(ran):
            part = rng.choice(("model", "claim", "method", "hydra", "defaults", "trainer", "dataset", "recipe"))
            yield re.sub(rf"(?m)^{part}:.*\n", "", good.decode()).encode() + f"{part}: {json.dumps(value)}\n".encode()


def kinds(out: Path, ran: Path, rng: random.Random, number: int) -> Iterator[tuple[str, Callable, Path]]:
    """(kind, how it is read, what is read) of every file, which lies there until the next one is asked for."""
    good = out / "good"
    (good / "checkpoints").mkdir(parents=True)
    net = models.build(MODEL)
    reprune.trace(net, torch.zeros(1, 3, 32, 32))
    reprune.save(net, good / "checkpoints/net.safetensors")
    for name, zipped in (("zip.pt", True), ("legacy.pt", False)):
        torch.save(net.state_dict(), good / "checkpoints" / name, _use_new_zipfile_serialization=zipped)
    for how, bomb in write_bombs(good / "checkpoints", good / "checkpoints"):
        yield "checkpoints and weights", {"load": reprune.load, "weights": weights}[how], bomb
    told = json.dumps(checkpoint.read_header(good / "checkpoints/net.safetensors")).encode()
    for body in bodies(told, ran, rng, number):
        if isinstance(body, bytes) and (text := body.decode(errors="ignore")):
            save_file(load_file(good / "checkpoints/net.safetensors"), out / "x.safetensors", {"reprune": text})
            yield "headers of checkpoints", reprune.load, out / "x.safetensors"

    root = project(good / "project")
    made = record(root, seconds={"prune": 1.0}, widths={"a": [16, 8]}, curves={"recover": {"loss": [1.0]}},
                  overrides=["method=l1"], code={"method": "aaaa"})
    (root / "experiments/some2020/A.yaml").write_text(ROW + "claim: {delta: -1, source: a, provenance: paper}\n")
    for other in ("B", "own-half"):                               # of a recipe that there is not
        (root / f"experiments/some2020/{other}.yaml").unlink()
    (root / "conf").symlink_to(ROOT / "conf")
    (root / "failed").mkdir()
    (root / "failed/a.json").write_text(json.dumps({"overrides": "method=l1", "error": "x", "sweep": None}))
    stage(root / "stages").keep(net, {"seconds": 1.0})
    torch.save({"state_dict": net.state_dict()}, root / "stages/b.ckpt")
    packed(root, write_tree(root / "tree"), part=0.01)
    here = made.relative_to(root).as_posix()
    say_tables(root)                                              # what it composes is kept: copies need not again
    for kind, name, read in (
            ("records", here, lambda at: say_tables(at) + say_show(at / here)), ("rows", "experiments/some2020/A.yaml",
             lambda at: say_tables(at) + say_campaign(at)), ("papers", "experiments/papers.yaml", say_tables),
            ("notes of failed runs", "failed/a.json", say_failed), ("stages", "stages/a.json", read_stage),
            ("stages", "stages/a.safetensors", read_stage), ("stages", "stages/b.ckpt", read_stage),
            ("images", "tree/train/ant/0.png", read_images), ("bundles", "bundle/bundle.tar.gz.000", say_unpack)):
        folder = root / name.split("/")[0]
        kept = shutil.copytree(folder, out / "kept" / name.replace("/", "-"))
        for body in bodies((root / name).read_bytes(), ran, rng, number):
            put(root / name, body)
            yield kind, read, root
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
    for name, read in (("net.safetensors", reprune.load), ("zip.pt", weights), ("legacy.pt", weights)):
        for body in bodies((good / "checkpoints" / name).read_bytes(), ran, rng, number):
            put(out / name, body)
            yield "checkpoints and weights", read, out / name


def put(file: Path, body: bytes | None | int) -> None:
    file.unlink(missing_ok=True)
    if body is None:
        os.mkfifo(file)
    elif isinstance(body, int):
        file.touch()
        os.truncate(file, body)
    else:
        file.write_bytes(body)


# ---------------------------------------------------------------- readers: what they return are lines

def weights(path: Path) -> None:
    models.load_weights(models.resnet(8, classes=7), path)


def say_tables(root: Path) -> list[str]:
    errors: list[str] = []
    tables(root, errors)
    return errors


def say_show(file: Path) -> list[str]:
    with redirect_stdout(shown := StringIO()), redirect_stderr(told := StringIO()):
        show.main([str(file)])
    if "\x1b" in shown.getvalue():
        raise ValueError("it draws on the terminal")
    return told.getvalue().splitlines()


def say_campaign(root: Path) -> list[str]:
    os.chdir(root)
    return list(campaign.find(root, ["*"], [0], ["dataset=digits", "recipe=smoke"], [])[1])


def say_failed(root: Path) -> list[str]:
    cells.failures(root)
    return [status.error_in(root / "failed/a.json")]


def stage(folder: Path) -> Stage:
    return Stage(folder / "a.safetensors", folder / "a.json", folder / "b.ckpt", "key", {"method": "a"})


def read_stage(root: Path) -> None:
    made = stage(root / "stages")
    made.found()
    made.facts.unlink()                                           # then it looks at what is unfinished
    made.found()


def read_images(root: Path) -> None:
    content({"_target_": "reprune.data.imagefolder", "data_dir": str(root / "tree")}, root)
    for _ in photos(root / "tree", val_size=0).plain(4, 0):
        pass


def say_unpack(root: Path) -> list[str]:
    return [said.strip()] if (said := unpack(root / "bundle", root / "there")) else []


# ---------------------------------------------------------------- a process for each

def memory(name: str) -> float:
    """MiB; VmRSS: now, VmHWM: at most, since this process was forked"""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def answer(read: Callable, path: Path) -> tuple[list[str], float, float]:
    """-> lines (none: a result), seconds, MiB of a process that reads the file. Raises Failure for any other end."""
    sys.stdout.flush()
    receive, send = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(receive)
            before, started = memory("VmRSS"), time.process_time()
            try:
                with redirect_stdout(StringIO()):
                    lines, error = said if isinstance(said := read(path), list) else [], ""
            except UserError as told:
                lines, error = [str(told)], ""
            except BaseException:
                lines, error = [], traceback.format_exc()
            end = time.process_time() - started, memory("VmHWM") - before
            os.write(send, json.dumps([[line[:3000] for line in lines][:9], error[-3000:], *end]).encode())
        finally:
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        if not select.select([pipe], [], [], HANG)[0]:
            os.kill(pid, signal.SIGKILL)
        said = pipe.read()
    end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    lines, error, seconds, mib = json.loads(said or json.dumps([[], f"it has ended with {end} and no word", 0, 0]))
    if wrong := [line for line in lines if "\n" in line or "\x1b" in line or len(line) > 2000]:
        error = f"more than one line: {wrong[0]!r}"
    if error:
        raise Failure(f"{path}: {error}")
    return lines, seconds, mib


def hostile(out: Path, seed: int, number: int) -> list[Count]:
    """number: of random, cut and changed files of each kind, beside those made by hand. Raises Failure."""
    ran, counts = out / "ran", {}
    ran.mkdir(parents=True)
    for kind, read, path in kinds(out, ran, random.Random(seed), number):
        lines, seconds, mib = answer(read, path)
        if any(ran.iterdir()):
            raise Failure(f"{path}: a command of it has run")
        count = counts.setdefault(kind, Count(kind))
        count.files += 1
        count.lines, count.results = count.lines + bool(lines), count.results + (not lines)
        count.seconds, count.mib = max(count.seconds, seconds), max(count.mib, mib)
    return list(counts.values())
