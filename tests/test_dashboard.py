"""The dashboard shows what runs log, and records of runs without W&B can be sent to it as they are."""

import base64
import io
import itertools
import json
import shutil
import socket
from contextlib import redirect_stdout

import pytest
import wandb_server
from conftest import EPOCHS, ROOT, TINY
from hydra import compose, initialize_config_dir
from test_loggers import history, online  # noqa: F401

from reprune.__main__ import main
from reprune.pipeline import run

CLAIM = "claim={baseline: 93.04, pruned: 93.06, params_drop: 13.7, macs_ratio: 2, source: Table 1, provenance: paper}"
OLD = ["6435f02b126979cd", "3711d0f3c9c46dab"]          # records from before there were curves in them


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def walk(node):
    """Every (key, value) of a spec."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def specs(*given):
    """What --dry-run prints."""
    with redirect_stdout(io.StringIO()) as text:
        assert main(["dashboard", "--dry-run", "--project", "mine", *given]) == 0
    return json.loads(text.getvalue())


def panels(spec):
    """(kind, config) of every panel, in order."""
    return [(p["viewType"], p["config"]) for _, value in walk(spec) if isinstance(value, list)
            for p in value if isinstance(p, dict) and "viewType" in p]


def named(spec):
    """What the panels and the table of runs read: of the history, the summary and the config."""
    lines, summary, config = set(), set(), set()
    for kind, panel in panels(spec):
        found = {name for key, value in walk(panel) if key in ("metrics", "xAxis", "yAxis")
                 for name in (value if isinstance(value, list) else [value])}
        assert found, kind                                        # a panel that shows nothing
        (lines if kind == "Run History Line Plot" else summary).update(n.removeprefix("summary:") for n in found)
    for _, columns in (item for item in walk(spec) if item[0] == "columnVisible"):
        summary |= {c.removeprefix("summary:") for c in columns if c.startswith("summary:")}
        config |= {c.removeprefix("config:") for c in columns if c.startswith("config:")}
    return lines, summary, config


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """What a tiny run with logger=wandb has logged, and its record."""
    folder = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        patch.setenv("REPRUNE_ROOT", str(ROOT))
        patch.setenv("WANDB_MODE", "offline")
        record = run(compose("config", [*TINY, *EPOCHS, "method=hgsr", "logger=wandb", CLAIM, f"output_dir={folder}",
                                        f"results_dir={folder}/results"]))
    (written,) = folder.glob(f"{record['key']}/wandb/offline-run-*")
    return history(written), record


def test_the_dashboard_is_built_without_a_network_and_twice_the_same(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def refuse(*args):
        raise AssertionError("a connection was asked for")
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    spec = specs("--entity", "me")
    assert panels(spec["workspace"]) == panels(spec["report"]) and len(panels(spec["report"])) >= 16
    lines, summary, _ = named(spec["report"])
    assert {"epoch", "baseline/loss", "sparse/val_top1", "recover/top1", "layer", "widths/kept"} <= lines
    assert {"pruned/macs", "pruned/top1", "claim/delta", "filters_drop", "seconds/recover"} <= summary
    assert named(spec["workspace"]) == named(spec["report"])


def test_runs_log_all_that_the_panels_show(live):
    (rows, config, summary), record = live
    spec = specs()["workspace"]
    lines, totals, columns = named(spec)
    assert lines <= {name for row in rows for name in row}
    for line in (panel for kind, panel in panels(spec) if kind == "Run History Line Plot"):
        assert any({line["xAxis"], *line["metrics"]} <= set(row) for row in rows)      # in one row: x and y
    assert totals <= set(summary)
    for column in columns:
        top, *rest = column.split(".")
        value = config[top]
        assert rest[0] == "value" and top in config
        for part in rest[1:]:
            value = value[part]
    assert summary["claim/delta"] == pytest.approx(0.02) and summary["claim/macs_drop"] == 50     # from the ratio
    assert summary["claim/source"] == "Table 1" and summary["delta_top1"] == pytest.approx(
        record["pruned"]["top1"] - record["baseline"]["top1"])
    kept = [(row["layer"], row["widths/before"], row["widths/after"]) for row in rows if "layer" in row]
    assert kept == [(n, *widths) for n, widths in enumerate(record["widths"].values(), 1)]


def test_records_are_written_as_the_runs_they_were(live, offline, root, tmp_path, capsys):
    (rows, config, summary), record = live
    records = tmp_path / "results" / "runs"
    records.mkdir(parents=True)
    for key in OLD:
        shutil.copy(root / "results" / "runs" / f"{key}.json", records)
    (records / f"{record['key']}.json").write_text(json.dumps({**record, "experiment": "half/resnet20-l1"}))
    given = ["--from-records", "--results-dir", str(tmp_path / "results"), "--output-dir", str(tmp_path / "W B")]
    for _ in range(2):                                            # again: the same folders, not more
        assert main(["dashboard", *given]) == 0
        assert f"wandb sync '{tmp_path / 'W B' / 'wandb'}'/offline-run-*" in capsys.readouterr().out
    folders = {f.name.split("-")[3]: f for f in (tmp_path / "W B" / "wandb").glob("offline-run-*")}
    assert sorted(folders) == sorted([*OLD, record["key"]])
    assert len(list((tmp_path / "W B" / "wandb").glob("offline-run-*"))) == 3

    again, same_config, same_summary = history(folders[record["key"]])
    assert [row["_step"] for row in again] == [row["_step"] for row in rows]
    for old, new in zip(rows, again, strict=True):
        names = {name for name in new if "/" in name or name in ("epoch", "layer")}
        assert names == {name for name in old if "/" in name or name in ("epoch", "layer")}
        assert all(new[name] == pytest.approx(old[name], rel=1e-4) for name in names)
    assert {**same_config, "_wandb": 0} == {**config, "_wandb": 0}
    figures = {k for k, v in summary.items() if isinstance(v, int | float) and "/" in k and k[0] != "_"}
    assert len(figures) > 30 and all(same_summary[k] == pytest.approx(summary[k], rel=1e-4) for k in figures)
    _, _, old = history(folders[OLD[1]])
    committed = json.loads((records / f"{OLD[1]}.json").read_text())
    assert old["pruned/top1"] == committed["pruned"]["top1"] and old["claim/pruned"] == 93.06
    assert old["commit"] == committed["env"]["git"] and not (folders[OLD[1]] / "files" / "wandb-metadata.json").exists()


def test_online_records_arrive_once_and_the_dashboard_is_saved_as_the_dry_run_shows_it(
        online, root, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Against a server of this test: that W&B's own shows the panels it does not prove."""
    answer, views, day, number = wandb_server._Handler._answer, {}, "2026-01-01T00:00:00Z", itertools.count()

    def extended(self, asked):
        given = asked.get("variables") or {}
        for kind in ("UpsertView2", "upsertView"):
            if f"mutation {kind}(" in asked["query"]:
                key = given.get("id") or base64.b64encode(f"View:{next(number)}".encode()).decode()
                views[key] = {"id": key, "kind": kind, "name": given["name"], "type": "runs",
                              "displayName": given["displayName"], "description": "", "spec": given["spec"],
                              "createdAt": day, "updatedAt": day,
                              "project": {"id": "p", "name": "mine", "entityName": "me"}}
                return {"upsertView": {"inserted": not given.get("id"), "view": views[key]}}
        if "query View(" in asked["query"]:
            nodes = [{"node": view} for view in views.values() if view["name"] == given["viewName"]]
            return {"project": {"allViews": {"edges": nodes}}}
        if "query SpecificReport(" in asked["query"]:
            return {"view": next(view for key, view in views.items() if key == given["reportId"])}
        if "query GetDefaultEntity" in asked["query"]:
            return {"viewer": {"id": "v", "entity": "me"}}
        if "query GetProjects" in asked["query"]:
            project = {"__typename": "Project", "id": "p", "name": "mine", "entityName": "me", "createdAt": day,
                       "isBenchmark": False, "user": None}
            return {"models": {"pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False},
                               "edges": [{"node": project}]}}
        if "rojectInternalId(" in asked["query"]:
            return {"project": {"internalId": "p"}}
        return answer(self, asked)

    monkeypatch.setattr(wandb_server._Handler, "_answer", extended)
    records = tmp_path / "results" / "runs"
    records.mkdir(parents=True)
    content = json.loads((root / "results" / "runs" / f"{OLD[0]}.json").read_text())
    content["curves"] = {"sparse": {"loss": [4.0, 3.0]}, "recover-0": {"loss": [5.0]},
                         "recover": {"loss": [2.0, 1.0], "top1": [50.0, 60.0]}}
    epochs = [{"epoch": 0, "sparse/loss": 4.0}, {"epoch": 1, "sparse/loss": 3.0}, {"epoch": 0, "recover-0/loss": 5.0},
              {"epoch": 0, "recover/loss": 2.0, "recover/top1": 50.0},
              {"epoch": 1, "recover/loss": 1.0, "recover/top1": 60.0}]
    (records / f"{OLD[0]}.json").write_text(json.dumps(content))
    told = []
    for again in range(3):
        if again == 2:
            del views[next(key for key, view in views.items() if view["kind"] == "UpsertView2")]       # a workspace
        assert main(["dashboard", "--project", "mine", "--from-records", "--results-dir", str(tmp_path / "results"),
                     "--output-dir", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out
        told.append([line.split()[1] for line in said.splitlines()[-2:]])
        assert "W&B has 1 run of records" in said and f"report     {online.url}/me/mine/reports/" in said
        (lines,) = online.histories.values()
        assert list(online.histories) == [OLD[0]] and [
            {name: value for name, value in lines[n].items() if name[0] != "_"} for n in sorted(lines)
            if "epoch" in lines[n]] == epochs
        assert len(views) == 2                                    # no new ones
    assert told[0] == told[1] and told[1][0] != told[2][0] and told[1][1] == told[2][1]
    expected, saved = specs(), {view["kind"]: json.loads(view["spec"]) for view in views.values()}
    assert panels(saved["UpsertView2"]) == panels(expected["workspace"])
    assert panels(saved["upsertView"]) == panels(expected["report"])
    assert named(saved["upsertView"]) == named(expected["report"])


def test_what_cannot_be_done_is_one_line(offline, monkeypatch, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    for key in ("WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))                     # where a key may lie
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for mode, given, told in ((None, [], "no W&B API key was found: type `wandb login`"),
                              ("offline", [], "a workspace lives on the server"),
                              ("offline", ["--from-records", "--results-dir", str(tmp_path)], "no record in")):
        with monkeypatch.context() as patch:
            if mode:
                patch.setenv("WANDB_MODE", mode)
            assert main(["dashboard", *given]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err
    (tmp_path / "runs" / "a.json").write_text("{}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    given = ["--from-records", "--results-dir", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert main(["dashboard", *given]) == 1
    assert "error: runs/a.json: schema: field required" in capsys.readouterr().err
