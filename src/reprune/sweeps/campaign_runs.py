"""Runs the rows of experiments/ that have not run, in order of value, for so many minutes; the next time goes on."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from reprune.errors import UserError
from reprune.files import write_tar
from reprune.sweeps.campaign import BF16, CONTROLS, TODO, Job, find, order
from reprune.sweeps.status import DONE, FAILED, RUNNING, last_line, stage, trained
from reprune.sweeps.throughput import Throughput
from reprune.sweeps.workers import shares, start

STOPPED = "stopped"
SAVING = 30.0           # seconds before the end at which runs are told to stop: for a batch, a checkpoint, --out
PAUSE = 0.2             # seconds between two looks at the runs


@dataclass
class Asked:
    """What `reprune campaign --help` explains."""

    minutes: float
    rows: list[str] = field(default_factory=lambda: ["*"])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))
    overrides: list[str] = field(default_factory=list)
    at_once: int | None = None
    dry_run: bool = False
    out: Path | None = None
    limit: float = 200
    part: float = 60
    typed: list[str] = field(default_factory=list)


class Campaign:
    """started: time.monotonic() when the minutes began."""

    def __init__(self, root: Path, args: Asked, started: float):
        self.root, self.args = root, args
        self.end = started + 60 * args.minutes
        self.stop_at = self.end - min(SAVING, 6 * args.minutes)   # at most a tenth
        imports = time.monotonic() - started                      # of a run, too
        self.asked = ""                                           # by which signal to end early
        self.runs: list[Job] = []
        self.ended: list[Job] = []                                # in this campaign, in order
        self.jobs, self.skipped = find(root, args.rows, args.seeds, args.overrides, args.controls)
        if all(job.state == RUNNING for job in self.jobs):
            self.say_skipped()
            raise UserError("no row can run here; the reasons are above")
        if bf16 := sum(BF16 in job.overrides for job in self.jobs):
            print(f"{bf16} of {len(self.jobs)} jobs in bfloat16 ({BF16}), which this processor has; trainer=auto: none")
        self.at_once, self.threads = shares(args.at_once, bf16 > 0, self.jobs[0].store.config)
        self.time = Throughput(self.jobs, self.threads, imports, self.left() / 100)

    def left(self) -> float:
        return self.stop_at - time.monotonic()

    def run(self) -> int:
        """-> exit status. What fails here ends this process; then its runs save and stop."""
        if self.args.dry_run:
            plan = [(job.row, job.control, job.seed, f"{self.time(job) / 60:.1f}", job.why)
                    for job in order(self.jobs, self.left(), self.time)]
            print(tabulate(plan, ("row", "control", "seed", "minutes", "why"), "plain", disable_numparse=True))
        while not self.args.dry_run and self.left() > 0:
            self.reap()
            while len(self.runs) < self.at_once and (job := self.next()):
                self.say("start", f"{job.name}: {job.why}, about {self.time(job) / 60:.1f} minutes")
                job.process = start(self.root, job.overrides, job.log, self.threads)
                job.state = RUNNING
                self.runs.append(job)
            if not self.runs:
                break
            time.sleep(PAUSE)
        self.stop()
        self.summary()
        return int(any(job.state == FAILED for job in self.ended))

    def ask(self, number: int, frame: object) -> None:
        self.asked, self.stop_at, self.end = signal.Signals(number).name, 0.0, time.monotonic() + SAVING

    def next(self) -> Job | None:
        """The most valuable job that need not wait for a baseline that another run trains."""
        if self.left() < self.time.start:                         # it would hardly begin
            return None
        for job in self.jobs:
            if job.process is None and job.state != DONE:
                job.refresh()
        training = {job.baseline for job in self.runs if job.baseline and not trained(job.store)}
        return next((job for job in order(self.jobs, self.left(), self.time) if job.baseline not in training), None)

    def reap(self, stopping: bool = False) -> None:
        """Looks which runs have ended, and how."""
        for job in [job for job in self.runs if job.process.poll() is not None]:
            self.runs.remove(job)
            self.ended.append(job)
            job.refresh()
            status, note = job.process.returncode, stage(job.store)
            if job.state == DONE:
                record = json.loads(job.store.published.read_text(encoding="utf-8"))
                self.time.learn(record)
                said = (f"top-1 {record['baseline']['top1']:.2f} -> {record['pruned']['top1']:.2f}, "
                        f"{sum(record['seconds'].values()) / 60:.1f} minutes")
            elif stopping and status in (-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM):
                job.state, said = STOPPED, f"goes on next time{f' ({note})' * bool(note)}"
            else:
                job.state, said = FAILED, f"{last_line(job.log, status)}   [{job.log}]"
            self.say(job.state, f"{job.name}: {said}")
            self.bring_back()                                     # now: this process may be killed

    def stop(self) -> None:
        """Tells the runs to save, and waits for them until the minutes are over."""
        for job in self.runs:
            job.process.terminate()
        while self.runs:
            time.sleep(PAUSE)
            for job in self.runs if time.monotonic() > self.end else ():
                job.process.kill()                                # what the last epoch left is whole
            self.reap(stopping=True)
        self.bring_back(state=True)

    def bring_back(self, state: bool = False) -> None:
        """Records and logs; with state, also trained baselines, what is unfinished, pruned nets: the dearest first."""
        if not self.args.out or not self.ended:
            return
        write_tar(self.args.out, "records.tar", [
            (job.store.published, f"results/runs/{job.store.key}.json") if job.state == DONE else
            (job.log, f"outputs/campaign/{job.log.name}") for job in self.ended])
        if state:
            nets = sorted({job.baseline: not trained(job.store) for job in self.ended if job.baseline}.items(),
                          key=lambda net: net[::-1])
            runs = sorted(self.ended, key=lambda job: (STOPPED, FAILED, DONE).index(job.state))
            left_out = write_tar(self.args.out, "state.tar", [
                *((net, f"outputs/baselines/{net.name}") for net, _ in nets),
                *((job.store.folder, f"outputs/{job.store.key}") for job in runs)], self.args.part, self.args.limit)
            if left_out:
                print(f"left out of {self.args.out}: {', '.join(left_out)} (--limit {self.args.limit:g} MiB)")

    def say(self, what: str, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {what:<8} {line}", flush=True)

    def say_skipped(self) -> None:
        elsewhere = [job.name for job in self.jobs if job.state == RUNNING]
        for why, rows in (*self.skipped.items(), *[("another process is at it", elsewhere)] * bool(elsewhere)):
            print(f"skipped  {', '.join(rows)}{': ' * bool(rows)}{why}")

    def summary(self) -> None:
        print(f"\ncampaign of {self.args.minutes:g} minutes" + f", ended by {self.asked}" * bool(self.asked))
        self.say_skipped()
        n = Counter("done before" if job.state == DONE and not job.process else job.state for job in self.jobs)
        left = sum(self.time(job) for job in self.jobs if job.state in (TODO, STOPPED))
        print(", ".join(f"{n[state]} {state}" for state in (DONE, STOPPED, FAILED, "done before", TODO))
              + f"; about {left / 60:.0f} minutes left, one by one")
        if (left or n[FAILED]) and not self.args.dry_run:
            print(f"next     {shlex.join(['python', '-m', 'reprune', *self.args.typed])}")


def main(asked: Asked) -> int:
    """-> exit status"""
    started = time.monotonic() - time.process_time()              # imports have taken seconds
    campaign = Campaign(Path.cwd(), asked, started)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, campaign.ask)
    return campaign.run()
