"""Curves: whole over breaks, and W&B never in the way of a run."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from conftest import HANG
from test_resume import TWO, Cut, cut_after
from wandb.proto import wandb_internal_pb2
from wandb_server import serve

from reprune.pipeline import run
from reprune.runs.loggers import open_logger
from reprune.runs.store import Store
from reprune.training.callbacks import read, write

OPTIONS = ["method=hgsr", *TWO]
WANDB = ["logger=wandb", f"logger.timeout={HANG}"]
STAGES = ("baseline", "sparse", "recover")


def curves(folder: Path) -> dict[str, list[dict]]:
    return {stage: read(folder / stage / "metrics.csv") for stage in STAGES}


def test_a_curve_goes_on_where_its_run_was_cut_off_and_starts_again_when_forced(configure, monkeypatch, tmp_path):
    whole = run(configure(*OPTIONS, "logger=csv", f"output_dir={tmp_path}/whole"))
    expected = curves(tmp_path / "whole" / whole["key"])
    for rows in expected.values():
        assert [row["epoch"] for row in rows] == [0, 1] and [row["step"] for row in rows] == [4, 8]
    assert {"sparse/loss", "sparse/top1", "sparse/val_top1", "sparse/penalty/hgsr"} < set(expected["sparse"][0])
    cut = configure(*OPTIONS, "logger=csv")
    for calls in (1, 2, 2):                                       # in the baseline, then in the sparse stage, and after
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_after(patch, calls)
            run(cut)
    record = run(cut)
    folder = Path(cut.output_dir) / record["key"]
    assert curves(folder) == expected

    write(folder / "sparse" / "metrics.csv", [{**row, "epoch": row["epoch"] + 7} for row in expected["sparse"]])
    run(configure(*OPTIONS, "logger=csv", "force=true"))
    assert curves(folder) == expected


def history(folder: Path) -> tuple[list[dict], dict, dict]:
    """What W&B has written to a folder. -> history, config, summary. (The format of LevelDB's logs.)"""
    (file,) = folder.glob("*.wandb")
    data, place, parts, rows, config, summary = file.read_bytes(), 7, b"", [], {}, {}
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:                             # no header crosses a block
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4:place + 6], "little"), data[place + 6]
        parts += data[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):                                        # full, last
            record, parts = wandb_internal_pb2.Record.FromString(parts), b""
            def content(items):
                return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            rows += [content(record.history.item)] if record.HasField("history") else []
            config.update(content(record.run.config.update))
            summary.update(content(record.summary.update))
    return rows, config, summary


def told(rows: list[dict]) -> list[tuple]:
    """Of W&B's rows, or of ours: which epoch of which stage."""
    return [(name.split("/")[0], row["epoch"]) for row in rows for name in row if name.endswith("/loss")]


ALL = [(stage, epoch) for stage in STAGES for epoch in (0, 1)]


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A W&B server, and a key for it."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    with serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield server
        import wandb

        server.mode = "drops"
        wandb.teardown()


def test_a_run_cut_off_offline_leaves_one_folder_with_all_epochs_once_and_its_command_uploads_them(
        online, configure, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = configure(*OPTIONS, *WANDB)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_after(patch, 3)
        run(cfg)
    time.sleep(1)                                                 # W&B names its folders by the second
    record = run(cfg)
    command = capsys.readouterr().out.split("upload later with:  ")[-1].splitlines()[0]
    (folder,) = Path(cfg.output_dir).glob(f"{record['key']}/wandb/offline-run-*")
    assert command == f"wandb sync {folder}"
    rows, config, summary = history(folder)
    assert told(rows) == ALL and [row["_step"] for row in rows] == list(range(len(rows)))
    assert config["method"]["name"] == "hgsr" and config["seed"] == 0
    assert summary["pruned/top1"] == record["pruned"]["top1"] and summary["pruned/macs"] == record["pruned"]["macs"]

    monkeypatch.delenv("WANDB_MODE")
    for _ in range(2):                                            # a second time: nothing is there twice
        done = subprocess.run([str(Path(sys.executable).with_name("wandb")), "sync", "--include-synced", folder],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        uploaded = online.histories[record["key"]]
        assert told([uploaded[n] for n in sorted(uploaded)]) == ALL


def test_a_run_cut_off_online_goes_on_as_the_same_run(online, configure, monkeypatch, capsys):
    cfg = configure(*OPTIONS, *WANDB)
    for calls in (1, 3):
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_after(patch, calls)
            run(cfg)
    before = len(next(iter(online.histories.values())))
    record = run(cfg)
    assert "wandb sync" not in capsys.readouterr().out
    (lines,) = online.histories.values()
    rows = [lines[n] for n in sorted(lines)]
    assert 0 < before < len(rows) and list(online.histories) == [record["key"]]
    assert told(rows) == ALL and [row["_step"] for row in rows] == list(range(len(rows)))


def test_the_server_gets_what_an_attempt_that_was_killed_had_not_sent(online, configure):
    """A killed cluster job takes W&B's service with it, and some seconds of the curve."""
    cfg = configure("method=l1", *WANDB)
    store = Store(cfg)
    rows = [{"epoch": e, "step": e, "baseline/loss": 1 / (1 + e)} for e in range(5)]
    for known in (2, 5):
        write(store.folder / "baseline" / "metrics.csv", rows[:known])
        open_logger(cfg, store).close()
    lines = online.histories[store.key]
    assert told([lines[n] for n in sorted(lines)]) == [("baseline", e) for e in range(5)]


def service() -> int:
    """The process id of W&B's service, a child of this one."""
    ask = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    (pid,) = (int(p) for p, parent, name in (line.split(None, 2) for line in ask.splitlines())
              if int(parent) == os.getpid() and "wandb-core" in name)
    return pid


@pytest.fixture
def limits(monkeypatch):
    """limits(answers) -> the seconds that W&B is given, each time: to start and to finish. Where nothing is in its way
    (a folder on the disk, at the start a server that answers) it takes as long as this machine does."""
    given, init = [], wandb.init

    def limited(answers: bool) -> list[tuple[float, float]]:
        def opened(mode, settings, **options):
            given.append((settings.init_timeout, settings.finish_timeout))
            if answers or mode == "offline":
                settings.init_timeout = HANG
            if mode == "offline":
                settings.finish_timeout = HANG
            return init(mode=mode, settings=settings, **options)

        monkeypatch.setattr(wandb, "init", opened)
        return given
    return limited


@pytest.mark.parametrize("trouble", ["refuses", "hangs", "denies", "malformed key",            # at the start
                                     "hangs later", "drops later", "service killed"])
def test_trouble_with_wandb_never_stops_a_run_and_is_told_in_a_line(trouble, online, limits, configure, monkeypatch,
                                                                            capsys):
    cfg = configure("method=l1", "logger=wandb", "logger.timeout=2")
    store, rows = Store(cfg), [{"epoch": e, "step": e, "baseline/loss": 1 / (1 + e)} for e in range(4)]
    silent = socket.socket()
    if trouble == "refuses":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    elif trouble == "hangs":                                      # takes connections, never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
    elif trouble == "denies":
        online.mode = "denies"
    elif trouble == "malformed key":
        monkeypatch.setenv("WANDB_API_KEY", "short")
    given = limits(trouble.endswith("later") or trouble == "service killed")
    logger = open_logger(cfg, store)
    said = capsys.readouterr().out
    assert ("logging offline" in said) == (trouble in ("refuses", "hangs", "denies", "malformed key"))
    assert said.count("\n") <= 1

    for known in range(1, 5):
        if known == 2 and trouble.endswith("later"):
            online.mode = trouble.split()[0]
        if known == 2 and trouble == "service killed":
            os.kill(killed := service(), signal.SIGKILL)
            os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
        write(store.folder / "baseline" / "metrics.csv", rows[:known])
        logger.grown()                                            # does not wait for a server that hangs until the end
    logger.close(failed=True)
    assert set(given) == {(2, 2)}
    said = capsys.readouterr().out
    (folder,) = re.findall(r"upload later with:  wandb sync (\S+)", said)
    assert told(history(Path(folder))[0]) == [("baseline", e) for e in range(4)]
    silent.close()


def test_a_run_without_its_wandb_server_ends_with_its_record(online, limits, configure, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    limits(answers=False)
    record = run(configure("method=l1", "logger=wandb", "logger.timeout=1"))
    said = capsys.readouterr().out
    assert record["status"] == "done" and said.count("W&B") == 2 and "wandb sync" in said
