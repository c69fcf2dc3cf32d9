"""Campaigns: what comes first, what is left out and why, and that stopping, carrying and going on changes no result."""

import importlib.metadata
import io
import os
import shlex
import shutil
import signal
import subprocess
import tarfile
import threading
import time
import venv
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import EPOCHS, ROOT, TINY
from filelock import FileLock
from safetensors.torch import load_file
from test_resume import result

from reprune.__main__ import main
from reprune.errors import UserError
from reprune.files import write_tar
from reprune.pipeline import run
from reprune.runs.measure import environment
from reprune.sweeps import campaign_runs
from reprune.sweeps.bundle import pack, packages
from reprune.sweeps.campaign import Job, find, order
from reprune.sweeps.campaign_runs import Campaign
from reprune.sweeps.throughput import Throughput

ROW = """\
# @package _global_
# {title}.    python run.py experiments=some2020/{name}
defaults:
  - override /model: resnet8
  - override /dataset: digits
  - override /method: {method}
  - override /recipe: smoke
method: {{allocation: {{rate: {rate}, groups: inner}}}}
recipe: {{paper_epochs: {{baseline: 1, sparse: 0, recover: {paper}}}, baseline: {{epochs: 1}}, recover: {{epochs: 1}}}}
"""
CLAIM = "claim: {baseline: 93.04, pruned: 93.06, source: Table 1, provenance: paper}\n"
ROWS = {"A": ("l1", 0.5, 1, CLAIM), "short": ("l1", 0.25, 40, CLAIM),
        "own": ("l1std", 0.5, 1, ""), "1-percent": ("l1", 0.01, 1, "")}       # of so few filters, 1 % is none
CONTROLS = {name: "# @package _global_\ndefaults: [override /method: " + name + "]\n" for name in ("random", "l1")}
CONTROLS["scratch"] = "# @package _global_\nrecipe: {recover: {from_scratch: true}}\n"
SPARED = ["wandb", "matplotlib"]
SMALL = [o for o in TINY if not o.startswith("model=")]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A paper on the digits, with the program; `places` are the overrides that keep all it writes in it."""
    folder = tmp_path / "project"
    (folder / "experiments/some2020").mkdir(parents=True)
    (folder / "experiments/papers.yaml").write_text("some2020: {title: Some Paper, venue: CONF 2020}\n")
    for name, (method, rate, paper, claim) in ROWS.items():
        text = ROW.format(title=f"Row {name}", name=name, method=method, rate=rate, paper=paper) + claim
        (folder / f"experiments/some2020/{name}.yaml").write_text(text)
    for name in ("run.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "conf", folder / "conf")
    if not (folder / "conf/control").exists():
        (folder / "conf/control").mkdir()
        for name, text in CONTROLS.items():
            (folder / f"conf/control/{name}.yaml").write_text(text)
        config = (folder / "conf/config.yaml").read_text()
        (folder / "conf/config.yaml").write_text(config.replace("  - override", "  - control: null\n  - override", 1))
    (folder / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


def campaign(root, *argv):
    """What the command would start."""
    with mock.patch.object(campaign_runs, "main", return_value=0) as begun:
        assert main(["campaign", "--minutes", "99", *argv]) == 0
    return Campaign(root, *begun.call_args.args, time.monotonic())


SECONDS = {"A": 50, "A control=random": 40, "A control=scratch": 45, "short": 10, "short control=random": 11,
           "short control=scratch": 12, "own": 5, "1-percent": 20}


def planned(jobs, left):
    names = {job: job.name.removeprefix("some2020/") for job in jobs}
    return [names[job] for job in order(jobs, left, lambda job: SECONDS[names[job].split(" seed")[0]])]


def seeds(number, *rows):
    return [f"{row} seed {number}" for row in rows]


def test_claims_come_first_then_their_controls_their_seeds_and_other_rows(project):
    jobs, skipped = find(project, ["*"], [0, 1], ["logger=none"])
    assert not skipped and {job.name for job in jobs if job.claimed} == {"some2020/A seed 0", "some2020/A seed 1"}
    rest = ["own", "short", "short control=random", "short control=scratch", "1-percent"]      # short: 1 epoch of 40
    controls = ["A control=random", "A control=scratch"]          # its method is l1, so that control=l1 is itself
    assert planned(jobs, 60) == [*seeds(0, "A", *controls), *seeds(1, *controls, "A"), *seeds(0, *rest),
                                 *seeds(1, *rest)]
    late = ["A control=scratch", "A"]                             # they do not fit any more
    assert planned(jobs, 42) == [*seeds(0, *rest, controls[0]), *seeds(1, *rest, controls[0]), *seeds(0, *late),
                                 *seeds(1, *late)]


def test_controls_are_those_asked_for_and_one_that_several_rows_share_runs_once(project):
    same = ROW.format(title="Row other", name="other", method="sfp", rate=0.5, paper=1) + CLAIM
    (project / "experiments/some2020/other.yaml").write_text(same)
    names = {"some2020/A seed 0", "some2020/other seed 0"}
    jobs, _ = find(project, ["some2020/A", "some2020/other"], [0], [], ["random"])
    assert {job.name for job in jobs} == {*names, "some2020/A control=random seed 0"}
    assert jobs[1].overrides[:2] == ["experiments=some2020/A", "control=random"]
    assert jobs[1].controls == {"some2020/A", "some2020/other"}
    jobs, _ = find(project, ["some2020/A", "some2020/other"], [0], [], [])
    assert {job.name for job in jobs} == names


def test_what_is_half_done_comes_first_and_rows_without_a_record_before_others():
    def plan(**changes):
        jobs = [Job(row, seed) for row in ("own", "short", "1-percent") for seed in (0, 1)]
        for job in jobs:
            for name, of in changes.items():
                found = (job.row, job.seed) in of
                setattr(job, name, ("done" if found else job.state) if name == "state" else found)
        return planned(jobs, 60)

    rows = ["own", "short", "1-percent"]
    assert plan() == [*seeds(0, *rows), *seeds(1, *rows)]
    assert plan(begun={("short", 1)})[0] == "short seed 1"
    assert plan(recorded={("own", 0), ("own", 1)})[:3] == seeds(0, "short", "1-percent", "own")
    assert plan(state={("own", 0)}) == [*seeds(0, "short", "1-percent"), *seeds(1, *rows)]


@pytest.mark.parametrize(("override", "why"), [
    ("dataset=cifar10", "cifar-10-batches-py is missing"), ("dataset=tinyimagenet", "200/train is missing"),
    ("model.weights=lost.th", "model.weights: no file at"), ("recipe=fast", "Could not find 'recipe/fast'")])
def test_rows_that_cannot_run_here_are_told_in_one_line(override, why, project, capsys):
    jobs, skipped = find(project, ["some2020/A"], [0, 1], [override, f"data_dir={project}/nowhere"])
    (told, rows), = skipped.items()
    assert not jobs and why in told and "\n" not in told
    assert rows == ["some2020/A", *(f"some2020/A control={name}" for name in ("random", "l1", "scratch"))]
    assert not (project / "nowhere").exists()
    with pytest.raises(UserError, match="no row can run here"):
        campaign(project, override, f"data_dir={project}/nowhere")
    assert capsys.readouterr().out.count(why) == 1


def test_a_pattern_without_a_row_is_named(project):
    with pytest.raises(UserError, match=r"'other/\*' matches no row; the rows are: .*some2020/A"):
        find(project, ["some2020/A", "other/*"], [0], [])


@pytest.mark.parametrize("argv", [["--minutes", "0"], ["--minutes", "1", "--seeds", "x"], ["--minutes", "1", "wrong"],
                                  ["--minutes", "1", "--at-once", "0"], ["--minutes", "1", "--seeds", "0,-1"], []])
def test_bad_arguments_are_told(argv, capsys):
    assert main(["campaign", *argv]) == 2
    assert "Error: " in capsys.readouterr().err.splitlines()[-1]


def test_time_is_what_runs_of_this_device_took(project):
    (job,), _ = find(project, ["some2020/A"], [0], ["logger=none"], controls=[])
    record = {"env": {"device": "cpu", "threads": 1}, "experiment": "other", "config": job.store.config,
              "baseline": {"macs": job.macs}, "epochs": {"baseline": 1, "sparse": 3, "recover": 1},
              "seconds": {"baseline": 0.0, "sparse": 30, "recover": 10, "prune": 3, "measure": 4}}
    took = Throughput([job], threads=1, start=2)
    guess = took(job)
    assert guess > 2                                              # nothing has run here: it has timed the net
    took.learn({**record, "env": {"device": "cpu", "threads": 8}})
    assert took(job) == guess                                     # another machine
    took.learn(record)
    measured = 10 * job.tested / (3 * job.images)               # an epoch took 10 s; its images count three times
    assert took(job) == pytest.approx(2 + 20 + measured)          # a baseline and a recovery of an epoch each
    took.learn({**record, "experiment": job.row})
    assert took(job) == pytest.approx(2 + 20 + 7)


def processor(monkeypatch, bf16: bool, cores: int = 4) -> None:
    """A CPU of so many cores, nothing said of threads."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(("given", "threads", "bf16", "shares"), [
    ([], "", True, (4, 1)), ([], "", False, (4, 1)), (["trainer=auto"], "", True, (4, 1)),
    (["trainer=auto"], "2", True, (2, 2)), (["trainer=auto", "--at-once", "2"], "", True, (2, 2)),
    (["--at-once", "1"], "", True, (1, 1)), (["--at-once", "1"], "", False, (1, 4))])
def test_on_a_cpu_a_run_per_core_is_the_default(given, threads, bf16, shares, project, one_thread, monkeypatch, capsys):
    processor(monkeypatch, bf16)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    made = campaign(project, "--rows", "some2020/own", "--seeds", "0", *given)
    assert (made.at_once, made.threads) == shares
    said = "1 of 1 jobs in bfloat16 (trainer=cpu_bf16), which this processor has" in capsys.readouterr().out
    assert said == (bf16 and "trainer=auto" not in given)


def test_a_campaign_takes_bfloat16_where_the_processor_has_it_and_nobody_has_begun_in_float32(project, monkeypatch):
    def precisions(*overrides):
        jobs, _ = find(project, ["some2020/own", "some2020/A"], [0, 1], overrides, [])
        return {job.name.split("/")[1]: job.store.config["trainer"]["precision"] for job in jobs}

    names = ("A seed 0", "A seed 1", "own seed 0", "own seed 1")
    plain = dict.fromkeys(names, "32-true")
    processor(monkeypatch, bf16=False)
    assert precisions() == plain
    processor(monkeypatch, bf16=True)
    assert precisions() == dict.fromkeys(names, "bf16-mixed")
    assert precisions("trainer=auto") == precisions("trainer.precision=32-true") == plain
    (job, *_), _ = find(project, ["some2020/own"], [1], ["trainer=auto"], [])
    (job.store.folder / "stages").mkdir(parents=True)
    (job.store.folder / "stages/sparse.ckpt").touch()
    assert precisions() == {**plain, "A seed 0": "bf16-mixed", "A seed 1": "bf16-mixed"}     # the other seed as well


def bare_machine(folder: Path) -> Path:
    """A Python that has torch, torchvision, what they need and what a bundle brings; nothing else. -> its executable"""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in packages(without=SPARED):
        there = importlib.metadata.distribution(package.split("==")[0])
        for top in {Path(file).parts[0] for file in there.files if ".." not in Path(file).parts}:
            if not (site / top).exists():
                (site / top).symlink_to(there.locate_file(top))
    return folder / "bin/python"


def wait_for(file: Path, after: int = 0, process: subprocess.Popen | None = None) -> None:
    """Until it is written, later than `after`, as long as the process that is to do so lives."""
    while not (file.is_file() and file.stat().st_mtime_ns > after):
        assert process is None or process.poll() is None, f"{file} is not written"
        time.sleep(0.05)


LONG = [*SMALL, *EPOCHS, "dataset.limit=90", "recipe.batch_size=30", "recipe.recover.epochs=20"]


def test_a_campaign_on_a_bare_machine_stops_is_carried_over_and_goes_on_to_the_same_result(
        project, configure, one_thread, tmp_path, monkeypatch, capsys):
    whole = run(configure("model=resnet8", "method=l1", "method.allocation.rate=0.5", *LONG, tiny=False))
    python = bare_machine(tmp_path / "bare")
    absent = f"from importlib.util import find_spec; print(*filter(find_spec, {[*SPARED, 'reprune']}))"
    assert subprocess.run([python, "-c", absent], capture_output=True, text=True, check=True).stdout == "\n"
    assert main(["pack", str(tmp_path / "bundle"), "--part", "0.25", "--python", ""]) == 0
    env = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "PYTHON": str(python)}
    said = subprocess.run(["sh", tmp_path / "bundle/unpack.sh", "there"], cwd=tmp_path, env=env, check=True,
                          capture_output=True, text=True).stdout
    assert said.startswith("cd there && PYTHONPATH=") and said.endswith("-m reprune campaign --minutes 25\n")

    there, same = tmp_path / "there", ["--at-once", "1", "--seeds", "0", "--controls", "", *LONG]
    command = said.replace("--minutes 25\n", "--minutes 99 --rows some2020/A,some2020/1-percent --out brought ")
    first = subprocess.Popen(["sh", "-c", command.replace("PYTHONPATH", "exec env PYTHONPATH") + shlex.join(same)],
                             cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    saved = Path("outputs") / whole["key"] / "stages/recovered-0.ckpt"
    wait_for(there / saved, process=first)
    first.send_signal(signal.SIGTERM)
    said = first.communicate()[0]
    assert first.returncode == 1 and "ended by SIGTERM" in said and "Traceback" not in said, said
    assert "stopped  some2020/A seed 0: goes on next time (recovered-0)" in said
    assert "failed   some2020/1-percent seed 0: error: " in said and "would remove no filter" in said
    assert "0 done, 1 stopped, 1 failed, 0 done before, 0 not begun" in said

    for file in sorted((there / "brought").iterdir()):
        with tarfile.open(file) as tar:
            tar.extractall(project, filter="data")
    again = campaign(project, "--rows", "some2020/A", *same)
    assert [job.begun for job in again.jobs] == [True]

    def end_early() -> None:                                      # the deadline comes once there is more to lose
        wait_for(saved, after=saved.stat().st_mtime_ns)
        again.stop_at = time.monotonic()

    threading.Thread(target=end_early, daemon=True).start()
    assert again.run() == 0 and again.ended[0].state == "stopped"
    assert "goes on next time" in (said := capsys.readouterr().out)
    assert "next     python -m reprune campaign --minutes 99 --rows some2020/A --at-once 1 --seeds 0 --con" in said

    last = campaign(project, "--rows", "some2020/A", "--out", "out", *same)
    assert last.run() == 0 and [job.state for job in last.jobs] == ["done"]
    record = last.jobs[0].store.finished()
    names = ("config", "experiment", "claim", "code", "recipe", "paper_epochs")      # of the row, not of its result
    assert {k: v for k, v in result(record).items() if k not in names} == {
        k: v for k, v in result(whole).items() if k not in names}
    a, b = (load_file(folder / whole["key"] / "net.safetensors") for folder in (Path("outputs"), tmp_path / "outputs"))
    assert all(torch.equal(a[name], b[name]) for name in a | b)
    with tarfile.open("out/records.tar.000") as tar:
        assert tar.getnames() == [f"results/runs/{whole['key']}.json"]

    once = campaign(project, "--rows", "some2020/A", *same)
    assert once.run() == 0 and not once.ended and "1 done before" in capsys.readouterr().out


def test_nothing_begins_when_there_is_no_time(project, capsys):
    late = campaign(project, "--minutes", "0.0001", "--seeds", "0", "--rows", "some2020/A,some2020/own", *LONG)
    assert late.run() == 0 and not late.ended
    assert "0 done, 0 stopped, 0 failed, 0 done before, 4 not begun" in capsys.readouterr().out
    assert not list(project.glob("outputs/*/stages"))


def test_what_another_process_is_at_is_left_to_it_and_taken_up_when_that_ends(project, capsys):
    given = ["--rows", "some2020/A", "--seeds", "0", "--controls", "", *LONG]
    other = campaign(project, *given)
    (job,) = other.jobs
    job.store.folder.mkdir(parents=True)
    with FileLock(job.store.folder / "lock"):
        assert other.next() is None
        with pytest.raises(UserError, match="no row can run here"):
            campaign(project, *given)
    assert "skipped  some2020/A seed 0: another process is at it" in capsys.readouterr().out
    assert other.next() is job


def test_a_bundle_is_cut_into_pieces_and_holds_the_project_alone(project, tmp_path, capsys):
    (project / "conf/__pycache__").mkdir()
    (project / "conf/__pycache__/x.pyc").write_text("left behind")
    (extra := tmp_path / "cifar").mkdir()
    (extra / "batch").write_bytes(os.urandom(300_000))
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/bundle.tar.gz.099").write_text("of an earlier, larger one")
    pack(tmp_path / "bundle", part=0.1, python="", also=[extra])
    pieces = sorted((tmp_path / "bundle").glob("bundle.tar.*"))
    assert len(pieces) > 3 and {p.stat().st_size for p in pieces[:-1]} == {2**20 // 10}
    assert f"0.10 MiB  {pieces[0]}" in capsys.readouterr().out
    with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in pieces))) as tar:
        names = set(tar.getnames())
    some = {"run.py", "conf/config.yaml", "experiments/some2020/A.yaml", "src/reprune/pipeline.py", "cifar/batch"}
    assert some <= names
    assert not [n for n in names if "pycache" in n or "egg-info" in n or n.startswith(("outputs", "/"))]
    with pytest.raises(UserError, match="--also .*lost: there is no such"):
        pack(tmp_path / "bundle", part=1, python="", also=[tmp_path / "lost"])


@pytest.mark.parametrize("part", [0.001, 1e-9])                   # MiB: a kilobyte, and less than a byte
def test_many_small_pieces_unpack_in_their_order(part, project, tmp_path):
    (tmp_path / "images").write_bytes(os.urandom(1_100_000))
    pack(tmp_path / "bundle", part, python="", also=[tmp_path / "images"])
    pieces = [*(tmp_path / "bundle").glob("bundle.tar.gz.*")]
    assert len(pieces) > 1000 and all(piece.stat().st_size for piece in pieces)
    env = {"PATH": os.environ["PATH"]}
    subprocess.run(["sh", tmp_path / "bundle/unpack.sh", tmp_path / "there"], env=env, check=True)
    assert (tmp_path / "there/images").read_bytes() == (tmp_path / "images").read_bytes()
    assert (tmp_path / "there/run.py").read_bytes() == (project / "run.py").read_bytes()


def test_records_of_a_machine_without_an_install_tell_the_version(monkeypatch):
    installed, version = environment("cpu"), importlib.metadata.version

    def not_there(name):
        if name == "reprune":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", not_there)
    assert environment("cpu")["reprune"] == installed["reprune"]


def test_what_does_not_fit_is_left_out_and_named(tmp_path):
    files = []
    for name, size in (("a", 5000), ("b", 50_000), ("c", 3000)):
        (tmp_path / name).write_bytes(bytes(size))
        files.append((tmp_path / name, name))
    left_out = write_tar(tmp_path / "out", "state.tar", files, part=8000 / 2**20, limit=40_000 / 2**20)
    made = sorted((tmp_path / "out").iterdir())
    assert left_out == ["b"] and len(made) > 1 and sum(file.stat().st_size for file in made) <= 40_000
    with tarfile.open(fileobj=io.BytesIO(b"".join(file.read_bytes() for file in made))) as tar:
        assert tar.getnames() == ["a", "c"]


def test_the_packages_of_a_bundle_are_those_of_the_project_but_torch():
    wanted = dict(package.split("==") for package in packages())
    assert {"hydra-core", "omegaconf", "antlr4-python3-runtime", "pytorch-lightning", "pymoo"} <= set(wanted)
    assert not set(wanted) & {"torch", "torchvision", "triton", "wandb", "matplotlib", "sympy", "ruff", "ray"}
    assert wanted["omegaconf"] == importlib.metadata.version("omegaconf")
    assert not any("scipy" in package for package in packages(without=["torch", "SciPy", "scikit_learn", "pymoo"]))
