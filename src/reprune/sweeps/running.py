"""The runs of a campaign: started while there is time, told to save and stop when there is none, and told of."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from reprune.errors import UserError
from reprune.sweeps.bundle import MIB, below, write_tar
from reprune.sweeps.campaign import DONE, ELSEWHERE, TODO, Job, find, order
from reprune.sweeps.status import stage, trained
from reprune.sweeps.throughput import Throughput, here

RUNNING, STOPPED, FAILED = "running", "stopped", "failed"
SAVING = 30.0           # seconds before the end at which runs are told to stop: for a batch, a checkpoint, --out
ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
PAUSE = 0.2             # seconds between two looks at the runs


@dataclass
class Run:
    job: Job
    process: subprocess.Popen
    log: Path
    slot: int
    since: float


class Campaign:
    """args: of experiments/campaign.py; started: time.monotonic() when the minutes began."""

    def __init__(self, root: Path, args: Namespace, started: float):
        self.root, self.args, self.at_once = root, args, args.at_once
        self.end = started + 60 * args.minutes
        self.stop_at = self.end - min(SAVING, 6 * args.minutes)   # at most a tenth
        self.asked: str | None = None                             # the signal that ends it early
        self.runs: list[Run] = []
        self.ended: list[Job] = []                                # in this campaign, in order
        self.told: dict[int, str] = {}                            # id of a job -> how it ended
        self.jobs, self.skipped = find(root, args.rows.split(","), args.seeds, args.overrides)
        for job in self.jobs:
            if job.state == ELSEWHERE:
                self.skipped.setdefault("another process is at it", []).append(job.name)
        if not self.jobs:
            self.say_skipped()
            raise UserError("no row can run here; the reasons are above")
        first = self.jobs[0]
        self.cores = len(os.sched_getaffinity(0))
        self.threads = int(os.environ.get("OMP_NUM_THREADS") or max(self.cores // self.at_once, 1))
        self.time = Throughput(here(first.work.device, self.threads), self.jobs, time.monotonic() - started)
        records = self.records()
        for job in self.jobs:
            job.recorded = any(record["experiment"] == job.row for record in records)
        for record in records:
            self.time.learn(record)
        if not self.time.rates:
            torch.set_num_threads(self.threads)
            self.time.calibrate({job.work.macs: job.work for job in self.todo()}.values(), self.left() / 50)

    def todo(self) -> list[Job]:
        return [job for job in self.jobs if job.state == TODO]

    def left(self) -> float:
        return self.stop_at - time.monotonic()

    def records(self) -> list[dict]:
        """All that can be read, of all rows, old ones first."""
        stores = {(job.store.published.parent, job.store.root) for job in self.jobs}
        found = []
        for published, outputs in stores:
            for file in [*published.glob("*.json"), *outputs.glob("*/record.json")]:
                with suppress(OSError, ValueError, KeyError, TypeError):      # tables tell of damaged ones
                    record = json.loads(file.read_text(encoding="utf-8"))
                    found.append((record["started"], record["key"], record))
        return [record for *_, record in sorted(found, key=lambda f: f[:2])]

    # ------------------------------------------------------------ running

    def run(self, argv: list[str]) -> int:
        """-> exit status"""
        if self.args.dry_run:
            return self.show_plan()
        handlers = {number: signal.signal(number, self.ask) for number in ENDING}
        try:
            while self.asked is None and self.left() > 0:
                self.reap()
                self.start_some()
                if not self.runs:
                    break
                time.sleep(PAUSE)
            self.stop()
        finally:
            for run in self.runs:                                 # only if something here has failed
                run.process.kill()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        left_out = self.bring_back()
        return self.summary(argv, left_out)

    def ask(self, number: int, frame: Any) -> None:
        self.asked = signal.Signals(number).name

    def start_some(self) -> None:
        free = sorted(set(range(self.at_once)) - {run.slot for run in self.runs})
        while free and (job := self.next()):
            self.start(job, free.pop(0))

    def next(self) -> Job | None:
        """The most valuable job that need not wait: for a baseline that another run trains, or for its own twin."""
        if self.left() < self.time.start:                         # it would hardly begin
            return None
        training = {run.job.baseline for run in self.runs if run.job.baseline and not trained(run.job.baseline)}
        keys = {run.job.store.key for run in self.runs}
        for job in self.todo():
            job.look()
        for job in order(self.jobs, self.left(), self.time):
            if job.baseline not in training and job.store.key not in keys:
                return job
        return None

    def start(self, job: Job, slot: int) -> None:
        log = job.store.root / "campaign" / f"{job.store.key}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1",
               "REPRUNE_ROOT": str(self.root)}
        if job.work.device == "cuda" and job.store.config["trainer"]["devices"] == 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            gpus = list(map(str, range(torch.cuda.device_count()))) if visible is None else visible.split(",")
            env["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        print(f"{self.clock()}  start    {job.name}: {job.why}, about {self.time(job) / 60:.1f} minutes", flush=True)
        with log.open("a", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, str(self.root / "run.py"), *job.overrides], env=env, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, process_group=0,       # Ctrl-C comes to this process alone
                preexec_fn=leave_with_parent)
        job.state = RUNNING
        self.runs.append(Run(job, process, log, slot, time.monotonic()))

    def reap(self, stopping: bool = False) -> None:
        """Looks which runs have ended, and how."""
        for run in list(self.runs):
            status = run.process.poll()
            if status is None:
                continue
            self.runs.remove(run)
            self.ended.append(run.job)
            run.job.refresh()
            if run.job.state == DONE:
                record = json.loads(run.job.store.published.read_text(encoding="utf-8"))
                self.time.learn(record)
                base, pruned = (record[net]["top1"] for net in ("baseline", "pruned"))
                took = (time.monotonic() - run.since) / 60
                self.told[id(run.job)] = f"top-1 {base:.2f} -> {pruned:.2f}, {took:.1f} minutes"
            elif stopping and status in (-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM):
                run.job.state = STOPPED
                at = stage(run.job.store, run.job.baseline)
                self.told[id(run.job)] = f"goes on next time{f' ({at})' * bool(at)}"
            else:
                run.job.state = FAILED
                self.told[id(run.job)] = f"{last_line(run.log, status)}   [{run.log}]"
            print(f"{self.clock()}  {run.job.state:<8} {run.job.name}: {self.told[id(run.job)]}", flush=True)
            if self.args.out and run.job.state != STOPPED:
                self.write_records()                              # now: this process may be killed

    def stop(self) -> None:
        """Tells the runs to save, and waits for them until the minutes are over."""
        for run in self.runs:
            run.process.terminate()
        until = time.monotonic() + SAVING if self.asked else self.end
        while self.runs:
            self.reap(stopping=True)
            if time.monotonic() > until:                          # what the last epoch left is whole
                for run in self.runs:
                    run.process.kill()
            time.sleep(PAUSE if self.runs else 0)

    # ------------------------------------------------------------ what comes back

    def write_records(self) -> None:
        files = [(job.store.published, f"results/runs/{job.store.key}.json") for job in self.ended if job.state == DONE]
        logs = [(log, f"outputs/campaign/{log.name}") for job in self.ended if job.state == FAILED
                if (log := job.store.root / "campaign" / f"{job.store.key}.log").is_file()]
        write_tar(self.args.out, "records.tar", [*files, *logs], part=2**62)

    def bring_back(self) -> list[str]:
        """-> what did not fit into --limit"""
        if self.args.out is None:
            return []
        self.write_records()
        _, left_out = write_tar(self.args.out, "state.tar", self.state(), int(self.args.part * MIB),
                                self.args.limit * MIB)
        return left_out

    def state(self) -> Iterator[tuple[Path, str]]:
        """Trained baselines, then what is unfinished, then pruned nets: the dearest first."""
        folders = dict.fromkeys(job.baseline for job in self.ended if job.baseline)
        for only in (True, False):
            for folder in folders:
                if trained(folder) is only:
                    yield from below(folder, f"outputs/baselines/{folder.name}")
        for state in (STOPPED, FAILED, DONE):
            for job in self.ended:
                if job.state == state and job.store.folder.is_dir():
                    yield from below(job.store.folder, f"outputs/{job.store.key}")

    # ------------------------------------------------------------ what is said

    def clock(self) -> str:
        return time.strftime("%H:%M:%S")

    def show_plan(self) -> int:
        rows = [(job.row, job.seed, f"{self.time(job) / 60:.1f}", job.why)
                for job in order(self.jobs, self.left(), self.time)]
        print(tabulate(rows, ("row", "seed", "minutes", "why"), "plain", disable_numparse=True))
        self.say_skipped()
        done = sum(job.state == DONE for job in self.jobs)
        print(f"{len(rows)} to do, {done} done before; {self.args.minutes:g} minutes, {self.at_once} at once")
        return 0

    def say_skipped(self) -> None:
        for why, rows in self.skipped.items():
            print(f"skipped  {', '.join(rows)}{': ' * bool(rows)}{why}")

    def summary(self, argv: list[str], left_out: list[str]) -> int:
        print(f"\ncampaign of {self.args.minutes:g} minutes" + f", ended by {self.asked}" * bool(self.asked))
        for state in (DONE, STOPPED, FAILED):
            for job in self.ended:
                if job.state == state:
                    print(f"{state:<8} {job.name}: {self.told[id(job)]}")
        self.say_skipped()
        if left_out:
            print(f"left out of {self.args.out}: {', '.join(left_out)} (--limit {self.args.limit:g} MiB)")
        states = [job.state for job in self.ended]
        before = sum(job.state == DONE for job in self.jobs) - states.count(DONE)
        todo = [job for job in self.jobs if job.state in (TODO, STOPPED)]
        print(f"{states.count(DONE)} done, {states.count(STOPPED)} stopped, {states.count(FAILED)} failed, "
              f"{before} done before, {len(todo) - states.count(STOPPED)} not begun; "
              f"about {sum(map(self.time, todo)) / 60:.0f} minutes left, one by one")
        if todo or FAILED in states:
            print(f"next     {shlex.join(['python', 'experiments/campaign.py', *argv])}")
        if self.args.out:
            out = shlex.quote(str(self.args.out))
            print(f"take in  cat {out}/records.tar.* | tar -x; cat {out}/state.tar.* | tar -x     # where run.py lies")
        return int(FAILED in states)


def leave_with_parent() -> None:
    """In a new process: even a campaign that is killed leaves no run behind; Linux tells it, and it saves."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)                # 1: PR_SET_PDEATHSIG


def last_line(log: Path, status: int) -> str:
    """Why a run has failed, as far as its output says."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]]
    said = [line for line in lines if line and "HYDRA_FULL_ERROR" not in line]
    errors = [line for line in said if re.match(r"error: |[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (errors or said or [f"exit status {status}"])[-1]
