"""Runs every benchmark of this folder and writes results/bench.md.      python bench/run.py [NAME ...]

Each in a process of its own, one after the other; common.py says what a benchmark is. What each has found is kept in
results/bench/, and the report is made of all that is there: with names, only those are measured again. One that fails
costs nobody else's numbers: its section says what went wrong, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from datetime import date
from pathlib import Path
from runpy import run_path
from threading import Timer
from time import perf_counter

import common
from tabulate import tabulate

from reprune.files import write_text

HERE = Path(__file__).resolve().parent
HELPERS = ("run.py", "common.py")
PEERS = ("torch", "torchvision", "torch-pruning", "pytorch-lightning")
LIMIT = 900                                                       # seconds of one benchmark


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="benchmarks to run (all)")
    parser.add_argument("--folder", type=Path, default=HERE, help="where they lie")
    parser.add_argument("--report", type=Path, default=HERE.parent / "results" / "bench.md", help="the report to write")
    parser.add_argument("--one", nargs=2, type=Path, metavar=("FILE", "ANSWER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return one(*given.one)
    files = sorted(f for f in given.folder.glob("*.py") if f.name not in HELPERS)
    if unknown := set(given.names) - {f.stem for f in files}:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(f.stem for f in files)}")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")           # these two as all runs have them
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    kept = given.report.with_suffix("")
    kept.mkdir(exist_ok=True)
    for file in (f for f in files if not given.names or f.stem in given.names):
        print(f"{file.stem} ...", flush=True)
        write_text(kept / f"{file.stem}.json", json.dumps(answer := apart(file) | conditions(), indent=1) + "\n")
        print(body(answer), flush=True)
    answers = {file.stem: json.loads((kept / f"{file.stem}.json").read_text(encoding="utf-8"))
               for file in files if (kept / f"{file.stem}.json").is_file()}
    write_text(given.report, page(answers))
    return int(any(answer["error"] for answer in answers.values()))


def one(file: Path, to: Path) -> int:
    """What the process of one benchmark does: measure, and write what there is to say."""
    sys.path.insert(0, str(file.parent))
    answer = {"doc": "", "rows": [], "targets": [], "missing": None, "error": None, "earlier": common.highest}
    try:
        module = run_path(str(file))
        answer["doc"] = (module["__doc__"] or "").strip()
        answer["missing"] = module.get("missing", lambda: None)()
        try:
            answer["rows"] = [] if answer["missing"] else module["main"]()
        finally:
            answer["targets"] = module.get("targets", lambda rows: [])(answer["rows"])
    except Exception as error:                                    # whatever it is, the others' numbers count
        traceback.print_exc()
        answer["error"] = traceback.format_exception_only(error)[-1].strip()
    to.write_text(json.dumps(answer, default=str), encoding="utf-8")
    return 0


def apart(file: Path) -> dict:
    """One benchmark in a fresh interpreter -> its answer, with the seconds, CPU seconds and peak MiB it took."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "answer.json"
        start = perf_counter()
        process = subprocess.Popen([sys.executable, str(HERE / "run.py"), "--one", str(file), str(to)],
                                   start_new_session=True)
        timer = Timer(LIMIT, _end, [process.pid])
        timer.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:                                     # Ctrl-C does not reach a session of its own
            _end(process.pid)
            raise
        finally:
            timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        took = {"seconds": perf_counter() - start, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1024}
        if to.is_file():
            answer = json.loads(to.read_text(encoding="utf-8"))
            return answer | took | {"peak": max([took["peak"], *answer["earlier"]])}
        error = f"ended with status {process.returncode} after {took['seconds']:.0f} s (the limit is {LIMIT} s)"
        return {"doc": "", "rows": [], "targets": [], "missing": None, "error": error, **took}


def _end(group: int) -> None:
    os.killpg(group, signal.SIGKILL)


def body(answer: dict) -> str:
    """The result of one benchmark as Markdown."""
    parts = [tabulate(answer["rows"], headers="keys", tablefmt="github")] if answer["rows"] else []
    if answer["missing"]:
        parts.append(f"not measured: {answer['missing']}")
    if answer["error"]:
        parts.append(f"**Failed**: `{answer['error']}`")
    parts.append(f"{answer['seconds']:.0f} s, {answer['cpu']:.0f} s of CPU, peak {answer['peak']:.0f} MiB; "
                 f"{answer['day']}, {answer['code']}")
    return "\n\n".join(parts)


def conditions() -> dict:
    """When, where and with what a benchmark has been measured."""
    return {"day": f"{date.today()}", "machine": machine(), "code": _commit(),
            "with": f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in PEERS)}


def page(answers: dict[str, dict]) -> str:
    """The report: targets, then a section for every benchmark, under what they were measured with."""
    total = sum(answer["seconds"] for answer in answers.values())
    same = {name: " / ".join(sorted({answer[name] for answer in answers.values()})) for name in ("machine", "with")}
    parts = ["# Benchmarks", f"Made by `make bench` in {total / 60:.0f} minutes. {same['machine']}. {same['with']}. "
             "Times drift between machines and runs: compare the ratios, which are measured side by side. Peaks are of "
             "the largest process of a benchmark."]
    targets = [{"benchmark": f"[{name}](#{name})", **target}
               for name, answer in answers.items() for target in answer["targets"]]
    if targets:
        parts += ["## Targets", tabulate(targets, headers="keys", tablefmt="github", disable_numparse=True)]
    if failed := [name for name, answer in answers.items() if answer["error"]]:
        parts.append(f"**Failed**: {', '.join(failed)}")
    for name, answer in answers.items():
        parts += [f"## {name}", *filter(None, [answer["doc"]]), body(answer)]
    return "\n\n".join(parts) + "\n"


def machine() -> str:
    """Cores and GPU, without torch: what this process holds would count as its children's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    gpu = "no GPU"
    if shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        said = subprocess.run(ask, capture_output=True, text=True)
        gpu = ", ".join(said.stdout.splitlines()) or gpu if said.returncode == 0 else gpu
    return f"{os.cpu_count()} cores ({name}), {gpu}"


def _commit() -> str:
    """Of this repository, with a + where what is tracked has changed since."""
    said = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--exclude=*", "--dirty=+"],
                          capture_output=True, text=True)
    return said.stdout.strip() or "no commit"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    sys.exit(main())
