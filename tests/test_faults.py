"""Faults: processes that are killed, files that are damaged, disks that are full or read-only, clocks that go back.

Every one must end, perhaps after the same command again, with the records of a sweep that nothing disturbed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import command
import pytest
from conftest import EPOCHS, TINY
from filelock import FileLock
from test_resume import TWO, Cut, cut_after, result

from reprune.errors import UserError
from reprune.files import intact, leftovers, read_sealed, write_json, write_sealed
from reprune.pipeline import run

STEPS = ["method=hgsr", "method/rounds=steps", "method.rounds.n=2", *TWO]


def flip(content: bytes, bits: int = 100) -> bytes:
    """Some bits in the middle: not all of them in what only fills up to the next multiple of 64 bytes."""
    middle = len(content) // 2
    return content[:middle] + bytes(b ^ 1 for b in content[middle:middle + bits]) + content[middle + bits:]


def truncate(content: bytes) -> bytes:
    return content[:len(content) // 2]


def sweep(out: Path, *overrides: str) -> subprocess.CompletedProcess:
    return command.run("-m", *TINY, *EPOCHS, f"output_dir={out}/outputs", *overrides, cwd=out.parent)


@pytest.fixture
def cut(configure, monkeypatch, tmp_path):
    """cut(calls, option, ...) -> the folder of a run that was cut off after so many epochs and finished stages"""
    def folder(calls: int, *options: str) -> Path:
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_after(patch, calls)
            run(configure(*options, f"output_dir={tmp_path}/cut"))
        return tmp_path / "cut"

    return folder


@pytest.fixture
def disk(tmp_path):
    """disk(option, ...) mounts a small disk of its own, or changes it. -> its folder"""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs to mount a small disk: run as root, where mount is allowed")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def test_sweeps_killed_at_random_at_file_operations_and_in_races_end_as_undisturbed_ones(root, tmp_path):
    few = "--kills 2 --command-kills 0 --operations 1 --together --trainer-killed 2 --same --methods hgsr l1 --epochs 2"
    few += " --disks 2 --hostile 0"
    typed = [sys.executable, root / "tests/faults.py", *few.split(), "--report", tmp_path / "faults.md"]
    done = subprocess.run(typed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total = (tmp_path / "faults.md").read_text().split("## Counts")[1]
    sweeps, attempts, kills, _, records, _ = map(int, re.findall(r"\d+", total))
    assert sweeps >= 3 and attempts >= sweeps + 4 and kills >= 4 and records >= 5


def test_files_of_an_unfinished_run_that_are_damaged_are_named_and_made_again(cut, configure, tmp_path, capsys):
    whole = run(configure(*STEPS, f"output_dir={tmp_path}/whole"))
    source = cut(9, *STEPS)                                       # in the last recovery: it holds all kinds of files
    for number, (suffixes, damages) in enumerate((({".safetensors", ".ckpt"}, (flip, truncate)),
                                                  ({".safetensors", ".ckpt"}, (truncate, flip)),
                                                  ({".json"}, (flip, truncate)))):
        place = shutil.copytree(source, tmp_path / str(number))
        files = [f for pattern in ("baselines/*/*", "*/stages/*") for f in sorted(place.glob(pattern))
                 if f.suffix in suffixes and f.name != "unfinished.ckpt"]
        assert {f.suffix for f in files} == suffixes and len(files) > 4
        for n, file in enumerate(files):
            file.write_bytes(damages[n % 2](file.read_bytes()))
        capsys.readouterr()
        assert result(run(configure(*STEPS, f"output_dir={place}"))) == result(whole)
        said = capsys.readouterr().out
        for file in files:
            net = file.with_name(file.name.replace("baseline.json", "net.json")).with_suffix(".safetensors")
            assert f"{file}: cannot be read" in said or f"{net}: cannot be read" in said


def test_a_damaged_record_counts_as_missing_and_is_made_again_here_and_among_the_results(configure, tmp_path, capsys):
    cfg = configure("method=l1")
    cfg.experiment = "paper/row"
    whole = run(cfg)
    record, published = (tmp_path / place / f for place, f in (
        (f"outputs/{whole['key']}", "record.json"), ("results/runs", f"{whole['key']}.json")))
    for content in (json.dumps(whole)[:500], "\x00\x01 rubbish", "{}", "[]", json.dumps({**whole, "key": "0" * 16})):
        published.write_text(content)
        now = json.loads(record.read_text())
        assert run(cfg) == now == json.loads(published.read_text())       # published again, not run again
    for content in (record.read_text()[:500], "[]"):
        record.write_text(content)
        capsys.readouterr()
        assert result(run(cfg)) == result(whole) == result(json.loads(record.read_text()))
        assert f"{record}: not the whole record of this run" in capsys.readouterr().out


def test_nothing_depends_on_the_clock(cut, root, configure, tmp_path):
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("needs faketime: apt-get install faketime")
    options = ["method=l1", *TWO]
    whole = run(configure(*options))
    folder = cut(5, *options)                                     # while it recovers
    for file in folder.rglob("*"):
        os.utime(file, (4e9, 4e9))                                # the year 2096
    typed = [faketime, "-f", "-3000d", sys.executable, root / "run.py", "-m", *TINY, *EPOCHS, *options]
    done = subprocess.run([*typed, f"output_dir={folder}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / whole["key"] / "record.json").read_text())
    assert result(record) == result(whole) and record["started"] < whole["started"]
    assert "baseline: " not in done.stdout and "recover: 2 epochs, going on where it was cut off" in done.stdout
    write_json(folder / whole["key"] / "record.json", {**record, "started": "2096-10-02T07:06:40Z"})
    assert run(configure(*options, f"output_dir={folder}"))["started"] > whole["started"]      # done is done


def test_a_full_disk_fails_cells_in_one_line_and_when_there_is_room_the_same_command_ends(disk, configure,
                                                                                        tmp_path):
    place = disk("size=4m")
    done = run(configure("method=l1", f"output_dir={place}"))
    room = shutil.disk_usage(place).free - (200 << 10)            # less than a checkpoint
    (place / "filling").write_bytes(bytes(room))
    first = sweep(tmp_path, "method=hgsr,l1,random", f"output_dir={place}", f"results_dir={place}/results")
    assert first.returncode == 1 and "Traceback" not in first.stderr
    assert "0 done, 1 finished before, 2 failed" in first.stdout
    assert first.stderr[first.stderr.index("failed: "):].count("No space left on device") == 2
    (place / "filling").unlink()
    for method in ("l1", "hgsr", "random"):
        assert result(run(configure(f"method={method}", f"output_dir={place}"))) == result(
            run(configure(f"method={method}"))), method
    assert run(configure("method=l1", f"output_dir={place}")) == done
    assert not list(place.rglob(".*"))


def test_a_read_only_folder_is_told_in_one_line_and_its_finished_runs_are_found(disk, configure, tmp_path):
    place = disk("size=8m")
    options = [f"output_dir={place}", f"results_dir={place}/results"]
    whole = run(configure("method=l1", *options))
    disk("remount", "ro")
    assert run(configure("method=l1", *options)) == whole
    with pytest.raises(UserError, match="lock: cannot be locked .Read-only file system.: make room"):
        run(configure("method=random", *options))
    done = sweep(tmp_path, "method=random", *options)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"error: output_dir={place} cannot be written") and done.stderr.count("\n") == 1
    disk("remount", "rw")
    assert run(configure("method=random", *options))["key"] != whole["key"]


def test_a_lock_that_cannot_be_made_is_told(configure, tmp_path):
    whole = run(configure("method=l1"))
    (tmp_path / "outputs" / whole["key"] / "lock").unlink()
    (tmp_path / "outputs" / whole["key"] / "lock").mkdir()
    with pytest.raises(UserError, match=f"{whole['key']}/lock: cannot be locked"):
        run(configure("method=l1", "force=true"))


def test_a_cell_whose_failure_cannot_be_noted_still_ends_the_sweep_with_status_1(tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "failed").write_text("where a folder should be")
    done = sweep(tmp_path, "method=l1", "method.allocation.rate=0.01,0.5")          # at 0.01 no filter would go
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "1 done, 0 finished before, 1 failed" in done.stdout
    assert "would remove no filter" in done.stderr[done.stderr.index("failed: "):]


def test_what_killed_attempts_leave_is_removed(configure, tmp_path):
    whole = run(configure("method=l1"))
    folder, baseline = tmp_path / "outputs" / whole["key"], next((tmp_path / "outputs" / "baselines").iterdir())
    shutil.copytree(baseline, folder / "stages")
    assert run(configure("method=l1")) == whole and not (folder / "stages").exists()      # killed after its record
    (folder / "record.json").unlink()
    (folder / "stages").mkdir()
    rest = [place / name for place in (folder, folder / "stages", baseline)
            for name in (".net.safetensors.0123456789ab.part", ".tmpAbC012")]
    for file in [*rest, baseline / "unfinished.ckpt"]:
        file.write_bytes(b"half a file")
    assert result(run(configure("method=l1"))) == result(whole)
    assert not [f for f in [*rest, baseline / "unfinished.ckpt"] if f.exists()]
    for lock in (tmp_path / "outputs").rglob("lock"):
        FileLock(lock, timeout=0).acquire().lock.release()


def test_a_seal_holds_for_what_was_written_and_for_nothing_else(tmp_path):
    net, facts = tmp_path / "net", tmp_path / "facts.json"
    net.write_bytes(bytes(100))
    write_sealed(facts, {"epochs": 2, "norms": [0.1, float("nan")]}, net)
    assert read_sealed(facts, net)["epochs"] == 2
    text = facts.read_text()
    for place in range(len(text.strip())):
        facts.write_text(text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1:])
        with pytest.raises(ValueError):
            read_sealed(facts, net)
    facts.write_text(text)
    net.write_bytes(bytes(99))
    with pytest.raises(ValueError, match="the checksum does not fit"):
        read_sealed(facts, net)
    write_json(facts, {"epochs": 3, "source": "trained here"})                            # from before there were seals
    assert read_sealed(facts, net)["epochs"] == 3
    assert not list(leftovers(tmp_path)) and not intact(net)
