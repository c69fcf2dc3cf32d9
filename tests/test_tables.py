"""Tables say what the records say: every number, nothing averaged that differs, nothing of a bad file."""

import copy
import json
from pathlib import Path

import pytest

from reprune.tables import main

REPOSITORY = Path(__file__).resolve().parents[1]
PAPER = {"baseline": 160, "sparse": 0, "recover": 40}
ROW = """\
# @package _global_
# Someone 2020, Table 1, Net-{name}.    python run.py experiments=some2020/{name}
defaults:
  - override /method: l1
  - override /recipe: some2020
method: {{allocation: {{rates: {{1: 0.5}}}}}}
"""
CLAIM = ("claim: {baseline: 93.04, pruned: 93.06, params_drop: 13.7, macs_drop: 27.6, source: Table 1, "
         "provenance: paper}\n")


@pytest.fixture
def root(tmp_path):
    """A project with two claimed rows, one of our own, and no runs."""
    folder = tmp_path / "experiments" / "some2020"
    folder.mkdir(parents=True)
    for name, claim in (("A", CLAIM), ("B", CLAIM.replace("93.06", "92.54")), ("own-half", "")):
        (folder / f"{name}.yaml").write_text(ROW.format(name=name) + claim)
    (tmp_path / "experiments" / "papers.yaml").write_text("some2020: {title: Some Paper, venue: CONF 2020}\n")
    return tmp_path


def record(root, row="A", seed=0, base=93.0, top1=92.0, key=None, **changes):
    """Writes a record; `changes` are dotted names with __ for the dot: epochs__recover=1."""
    content = {
        "schema": 1, "key": key or f"{len(list(root.glob('results/runs/*'))):016x}", "status": "done",
        "experiment": f"some2020/{row}", "claim": None, "method": "l1", "model": "net", "dataset": "cifar10",
        "recipe": "some2020", "seed": seed,
        "config": {"model": {"name": "net"}, "dataset": {"name": "cifar10", "limit": None, "data_dir": "/secret/place"},
                   "method": {"name": "l1", "allocation": {"rates": {"1": 0.5}}}, "trainer": {"precision": "32-true"},
                   "recipe": {"name": "some2020", "recover": {"epochs": 40, "lr": 0.001}}, "seed": seed},
        "baseline": {"top1": base, "params": 1000, "macs": 2000, "latency_ms": 8.0, "source": "trained here"},
        "pruned": {"top1": top1, "top1_best": None, "params": 750, "macs": 1000, "latency_ms": 5.0},
        "latency": {"batch_size": 64, "threads": 2, "device": "cpu"},
        "epochs": dict(PAPER), "paper_epochs": dict(PAPER), "env": {"git": "abc123", "torch": "2.15.0"},
        "started": "2026-01-01T00:00:00Z"}
    for name, value in changes.items():
        *path, last = name.split("__")
        node = content
        for part in path:
            node = node[part]
        node[last] = copy.deepcopy(value)
    file = root / "results" / "runs" / f"{content['key']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def tables(root, rc=0):
    assert main(["--root", str(root)]) == rc
    return (root / "results" / "some2020.md").read_text()


def section(text, title):
    """{row name: [its line as {column: cell} in each table]} of the section under a heading; several lines of a row
    in one table follow one another."""
    assert f"## {title}" in text, f"no section {title!r}"
    body, found = text.split(f"## {title}")[1].split("\n## ")[0], {}
    for block in body.split("\n\n"):
        lines = [[c.strip() for c in line.strip("|").split("|")] for line in block.splitlines() if line.startswith("|")]
        for cells in lines[2:]:
            name = cells[0].split("]")[0].lstrip("[")
            found.setdefault(name, []).append(dict(zip(lines[0], cells, strict=True)))
    return found


FULL, SHORT, CHANGED, OWN = "The paper's rows", "Short runs", "Changed runs", "Rows of our own"


def test_rows_without_a_run_say_so_and_show_their_command(root):
    text = tables(root)
    numbers, cost, source = section(text, FULL)["B"]
    assert numbers == {"row": "[B](../experiments/some2020/B.yaml)", "paper: baseline → pruned": "93.04 → 92.54",
                       "paper Δ": "-0.50", "ours: baseline → pruned": "not run"}
    assert cost["MACs removed, %: paper / ours"] == "27.6 / –"
    assert source["claim from"] == "Table 1 (paper)" and source["what it is"] == "Someone 2020, Table 1, Net-B"
    assert source["command"] == "`python run.py experiments=some2020/B`"
    assert section(text, OWN)["own-half"][0]["ours: baseline → pruned"] == "not run"
    assert "# Some Paper" in text and "make tables" in text and SHORT not in text and "## Runs" not in text


def test_a_run_stands_beside_the_claim(root):
    key = record(root, pruned__top1_best=93.1).stem
    numbers, cost, _ = section(tables(root), FULL)["A"]
    assert numbers["ours: baseline → pruned"] == "93.00 → 92.00" and numbers["our Δ"] == "-1.00"
    assert numbers["best epoch on test"] == "93.10" and numbers["seeds"] == "1"
    assert numbers["epochs, run/paper"] == "baseline 160/160, recover 40/40"
    assert numbers["runs"] == cost["runs"] == f"[{key[:8]}](runs/{key}.json)"
    assert cost["parameters removed, %: paper / ours"] == "13.7 / 25.0"
    assert cost["MACs removed, %: paper / ours"] == "27.6 / 50.0"
    assert cost["measured speed-up"] == "1.60x (cpu, batch 64, 2 threads)"


def test_seeds_are_averaged_and_delta_is_against_the_baseline_of_the_same_seed(root):
    for seed, base, top1 in ((0, 93.0, 92.0), (1, 94.0, 92.5), (2, 92.0, 93.0)):
        record(root, seed=seed, base=base, top1=top1)
    numbers = section(tables(root), FULL)["A"][0]
    assert numbers["ours: baseline → pruned"] == "93.00 → 92.50 ± 0.50"      # sample standard deviation
    assert numbers["our Δ"] == "-0.50" and numbers["seeds"] == "3"           # (-1.0 - 1.5 + 1.0) / 3
    assert [r["pruned"] for r in section(tables(root), "Runs").values() for r in r] == ["92.00", "92.50", "93.00"]


def test_speed_of_different_machines_is_not_averaged(root):
    record(root)
    record(root, seed=1, latency__device="cuda", pruned__latency_ms=2.0)
    speed = section(tables(root), FULL)["A"][1]["measured speed-up"]
    assert speed == "1.60x (cpu, batch 64, 2 threads); 4.00x (cuda, batch 64, 2 threads)"


@pytest.mark.parametrize(("changes", "epochs"), [
    ({"epochs__recover": 1}, "baseline 160/160, recover 1/40"),
    ({"epochs__baseline": 0}, "baseline 0/160, recover 40/40"),
    ({"paper_epochs": None, "epochs__recover": 3}, "baseline 160/?, recover 3/?"),
    ({"config__dataset__limit": 500}, "baseline 160/160, recover 40/40, 500 images"),
    ({"epochs__recover": 1, "epochs__baseline": 0, "baseline__source": "net.th sha256:12"},
     "given weights, recover 1/40"),
])
def test_short_runs_stand_apart(root, changes, epochs):
    record(root, top1=50.0, **changes)
    record(root, row="B")
    text = tables(root)
    numbers = section(text, SHORT)["A"][0]
    assert numbers["epochs, run/paper"] == epochs and numbers["ours: baseline → pruned"] == "93.00 → 50.00"
    assert section(text, FULL)["A"][0]["ours: baseline → pruned"] == "other runs only, see below"
    assert set(section(text, SHORT)) == {"A"}


def test_a_full_run_from_given_weights_is_no_short_run(root):
    record(root, epochs__baseline=0, baseline__source="net.th sha256:12")
    text = tables(root)
    assert SHORT not in text and "net.th sha256:12" in text.split("## Runs")[1]
    assert section(text, FULL)["A"][0]["epochs, run/paper"] == "given weights, recover 40/40"


def test_a_full_run_and_a_short_run_of_a_row_never_meet(root):
    record(root, top1=92.0)
    record(root, seed=1, top1=50.0, epochs__recover=1, config__recipe__recover__epochs=1)
    text = tables(root)
    assert section(text, FULL)["A"][0]["ours: baseline → pruned"] == "93.00 → 92.00"
    assert section(text, SHORT)["A"][0]["ours: baseline → pruned"] == "93.00 → 50.00"
    assert section(text, SHORT)["A"][0]["setting"] == "`recipe.recover.epochs=1`"


def test_different_settings_are_never_averaged(root):
    record(root, top1=92.0)
    record(root, seed=1, top1=90.0, config__recipe__recover__lr=0.1)
    first, second = section(tables(root), FULL)["A"][:2]
    assert {first["setting"], second["setting"]} == {"`recipe.recover.lr=0.001`", "`recipe.recover.lr=0.1`"}
    assert {first["our Δ"], second["our Δ"]} == {"-1.00", "-3.00"} and first["seeds"] == second["seeds"] == "1"


def test_places_are_no_setting_and_not_shown(root):
    record(root)
    record(root, seed=1, config__dataset__data_dir="/other/place")
    text = tables(root)
    assert section(text, FULL)["A"][0]["seeds"] == "2" and "place" not in text


@pytest.mark.parametrize(("changes", "setting"), [
    ({"method": "random", "config__method__allocation": {}}, "`method=random`"),
    ({"config__method__allocation__rates": {"1": 0.9}}, "`method.allocation.rates.1=0.9`"),
    ({"epochs__recover": 80}, None),
])
def test_a_run_that_is_not_what_the_row_says_is_not_the_row(root, changes, setting):
    record(root, top1=95.0, **changes)
    text = tables(root)
    assert section(text, CHANGED)["A"][0].get("setting") == setting
    assert section(text, FULL)["A"][0]["ours: baseline → pruned"] == "other runs only, see below"


def test_rows_of_our_own_say_what_they_ran(root):
    record(root, row="own-half", epochs={"baseline": 0, "sparse": 2, "recover": 1}, paper_epochs=None,
           baseline__source="net.th sha256:12")
    numbers, cost, source = section(tables(root), OWN)["own-half"]
    assert numbers["epochs"] == "given weights, sparse 2, recover 1" and numbers["our Δ"] == "-1.00"
    assert cost["MACs removed, %"] == "50.0" and "claim from" not in source
    assert not any("paper" in column for column in [*numbers, *cost])


def test_index_counts_rows(root):
    record(root)
    record(root, row="B", epochs__recover=1)
    tables(root)
    index = (root / "results" / "README.md").read_text()
    cells = [c.strip() for c in index.splitlines()[-1].strip("|").split("|")]
    assert cells == ["[Some Paper](some2020.md)", "CONF 2020", "2", "1", "0", "1", "0", "0", "2"]


def test_check_passes_on_what_was_written_and_changes_nothing(root, capsys):
    record(root)
    text = tables(root)
    files = {f: f.stat().st_mtime_ns for f in root.rglob("*")}
    assert main(["--check", "--root", str(root)]) == 0 and capsys.readouterr().err == ""
    assert files == {f: f.stat().st_mtime_ns for f in root.rglob("*")} and tables(root) == text


@pytest.mark.parametrize("what", ["record gone", "number edited", "claim edited", "table gone"])
def test_check_names_what_differs(root, capsys, what):
    file, table, row = record(root), root / "results/some2020.md", root / "experiments/some2020/A.yaml"
    tables(root)
    if what == "record gone":
        file.unlink()
    elif what == "number edited":
        table.write_text(table.read_text().replace("92.00", "93.00"))
    elif what == "claim edited":
        row.write_text(row.read_text().replace("93.04", "93.05"))
    else:
        table.unlink()
    assert main(["--check", "--root", str(root)]) == 1
    assert "results/some2020.md differs from what the records say: run make tables" in capsys.readouterr().err


@pytest.mark.parametrize(("changes", "told"), [
    ({"schema": 2}, "schema must be 1"),
    ({"status": "running"}, "status 'done'"),
    ({"pruned__top1": None}, "pruned.top1 must be percent, not None"),
    ({"pruned__top1": float("nan")}, "pruned.top1 must be percent, not nan"),
    ({"pruned__top1_best": "high"}, "pruned.top1_best must be percent or null, not 'high'"),
    ({"baseline__params": 0}, "baseline.params must be positive, not 0"),
    ({"baseline": [1, 2]}, "baseline.source must be text, not None"),
    ({"seed": True}, "seed must be count, not True"),
    ({"epochs": {"recover": 1}}, "epochs must be counts"),
    ({"config__recipe": "some2020"}, "config.recipe must be mapping"),
    ({"experiment": None}, "experiment must be text, not None"),
    ({"experiment": "some2020/C"}, "experiment 'some2020/C' has no file experiments/some2020/C.yaml"),
    ({"key": "../evil"}, None),
])
def test_a_bad_record_is_named_and_the_rest_is_built(root, capsys, changes, told):
    record(root, row="B", key="00000000000000aa")
    bad = record(root, key="00000000000000bb")
    content = json.loads(bad.read_text())
    bad.unlink()
    if "key" in changes:                    # a file that is not named by its key
        bad.write_text(json.dumps({**content, **changes}))
        told = "key '../evil' must be the name of the file"
    else:
        record(root, key="00000000000000bb", **changes)
    text = tables(root, rc=1)
    error = capsys.readouterr().err
    assert error.startswith("error: results/runs/00000000000000bb.json: ") and told in error and error.count("\n") == 1
    assert section(text, FULL)["B"][0]["our Δ"] == "-1.00" and "bb.json" not in text


@pytest.mark.parametrize("text", ["{", "", "[1]", "null", '"3"', "\x00\xff"])
def test_a_file_that_is_no_record(root, capsys, text):
    record(root)
    (root / "results/runs/foreign.json").write_text(text)
    assert "-1.00" in tables(root, rc=1)
    error = capsys.readouterr().err
    assert error.startswith("error: results/runs/foreign.json: ") and error.count("\n") == 1


@pytest.mark.parametrize(("old", "new", "told"), [
    (", source: Table 1", "", "claim.source must be text, not None"),
    (", provenance: paper", "", "claim.provenance must be text, not None"),
    ("source: Table 1", "source: ''", "claim.source must be text, not ''"),
    ("93.04", "high", "claim.baseline must be percent, not 'high'"),
    ("macs_drop", "mac_drop", "claim.mac_drop is unknown"),
    ("claim: {", "claim: 3 #", "claim must be mapping, not 3"),
    ("experiments=some2020/A", "experiments=some2020/B", "must name experiments=some2020/A"),
    ("claim: {", "claim: [", "content cannot be read"),
])
def test_a_bad_row_is_named_and_the_rest_is_built(root, capsys, old, new, told):
    record(root)
    record(root, row="B")
    file = root / "experiments/some2020/A.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    text = tables(root, rc=1)
    error = capsys.readouterr().err
    assert error.startswith("error: experiments/some2020/A.yaml: ") and told in error and error.count("\n") == 1
    assert set(section(text, FULL)) == {"B"}


def test_a_paper_nobody_described_and_a_root_without_experiments(root, tmp_path_factory, capsys):
    (root / "experiments/papers.yaml").write_text("other: {}\n")
    assert tables(root, rc=1).startswith("# some2020\n")
    assert capsys.readouterr().err == (
        "error: experiments/papers.yaml: some2020 must be a mapping with title, authors, venue\n")
    assert main(["--root", str(tmp_path_factory.mktemp("empty"))]) == 1
    assert "error: experiments: no row" in capsys.readouterr().err


def test_committed_tables_are_what_the_committed_records_say(capsys):
    assert main(["--check", "--root", str(REPOSITORY)]) == 0, capsys.readouterr().err
