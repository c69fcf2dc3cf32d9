"""Bad input of tables is one line that names file and field; the rest is built, the exit status is 1."""

import csv
import json
import os
from itertools import pairwise

import pytest
from project import FULL, claim, project, record, section, tables

from reprune.__main__ import main


@pytest.fixture
def root(tmp_path):
    return project(tmp_path)


@pytest.mark.parametrize(("stated", "told"), [
    ("baseline: 93.04", "claim must state what a run can be held against"),
    ("setting: little loss", "claim must state what a run can be held against"),
    ("delta: small", "claim.delta: input should be a valid number, not 'small'"),
    ("better_than_baseline: false", "claim.better_than_baseline: input should be True, not False"),
    ("pruned: 36.7, metric: ap", "claim.metric: input should be 'top1' or 'top5', not 'ap'"),
    ("params_drop_min: 120", "claim.params_drop_min: input should be less than or equal to 100, not 120"),
    ("params_ratio: 0.5", "claim.params_ratio: input should be greater than or equal to 1, not 0.5"),
    ("delta: -1, setting: 3", "claim.setting: input should be a valid string, not 3"),
    ("macs_drop: 50, derived: macs_drop", "claim.derived: input should be a valid list, not 'macs_drop'"),
    ("macs_drop: 50, derived: [params_drop]", "claim.derived names 'params_drop', which is no number of the claim"),
    ("baseline: 93.04, pruned: 92.54, delta: -0.52", "claim.delta -0.52 contradicts pruned - baseline = -0.50"),
    ("baseline: 93, pruned: 92, better_than_baseline: true", "better_than_baseline or no_accuracy_loss contradicts"),
    ("delta: -0.1, no_accuracy_loss: true", "better_than_baseline or no_accuracy_loss contradicts"),
    ("macs_drop: 50, macs_drop_min: 40", "claim.macs_drop contradicts its own bound"),
    ("macs_drop: 50, macs_ratio_min: 2", "claim.macs_drop contradicts its own bound"),
    ("macs_drop_min: 50, macs_drop_max: 40", "claim.macs_drop_min 50 contradicts macs_drop_max 40"),
    ("macs_ratio: 3, macs_drop: 60, derived: [macs_drop]", "claim.macs_drop 60 is not the 66.67 of its ratio"),
    ("delta: -1, flops: 3", "claim.flops is unknown, allowed: source, provenance"),
])
def test_a_bad_claim_is_one_line_and_the_rest_is_built(root, capsys, stated, told):
    claim(root, stated)
    record(root, row="B")
    text = tables(root, rc=1)
    error = capsys.readouterr().err
    assert error.startswith("error: experiments/some2020/A.yaml: claim") and told in error and error.count("\n") == 1
    assert set(section(text, FULL)) == {"B"}


@pytest.mark.parametrize(("changes", "told"), [
    ({"schema": 2}, "schema: input should be 1, not 2"),
    ({"status": "running"}, "status: input should be 'done', not 'running'"),
    ({"pruned__top1": None}, "pruned.top1: input should be a valid number, not None"),
    ({"pruned__top1": float("nan")}, "pruned.top1: input should be a finite number, not nan"),
    ({"pruned__top1_best": "high"}, "pruned.top1_best: input should be a valid number, not 'high'"),
    ({"baseline__params": 0}, "baseline.params: input should be greater than 0, not 0"),
    ({"baseline": [1, 2]}, "baseline: input should be an object, not [1, 2]"),
    ({"seed": True}, "seed: input should be a valid integer, not True"),
    ({"epochs": {"recover": 1}}, "epochs.baseline: field required"),
    ({"config__recipe": "some2020"}, "config.recipe must be a mapping, not 'some2020'"),
    ({"pruned__top1_before_recovery": 101}, "pruned.top1_before_recovery: input should be less than or equal"),
    ({"group_norms": [1.0]}, "group_norms: input should be an object, not [1.0]"),
    ({"group_norms": {}}, "group_norms: dictionary should have at least 1 item after validation, not 0, not {}"),
    ({"group_norms": {"conv1": 1.0}}, "group_norms.conv1: input should be a valid array, not 1.0"),
    ({"group_norms": {"conv1": []}}, "group_norms.conv1: list should have at least 1 item"),
    ({"group_norms": {"conv1": [1.0, -0.1]}}, "group_norms.conv1.1: input should be greater than"),
    ({"group_norms": {"conv1": [float("nan")]}}, "group_norms.conv1.0: input should be a finite number, not nan"),
    ({"widths": {"conv1": [16, 10**18]}}, "widths.conv1.1: input should be less than or equal to 1000000"),
    ({"env": {"git": "abc123; touch x"}}, "env.git: string should match pattern"),
    ({"curves": {"recover": {"loss": ["low"]}}}, "curves.recover.loss.0: input should be a valid number, not 'low'"),
    ({"experiment": None}, "experiment: must be the id of a row, not None"),
    ({"experiment": "some2020/C"}, "experiment 'some2020/C' has no file experiments/some2020/C.yaml"),
    ({"key": "../evil"}, None),
])
def test_a_bad_record_is_named_and_the_rest_is_built(root, capsys, changes, told):
    record(root, row="B")
    bad = record(root, **changes) if "key" not in changes else record(root)
    if "key" in changes:                    # a file that is not named by its key
        bad.write_text(json.dumps({**json.loads(bad.read_text()), **changes}))
        told = "key '../evil' must be the name of the file"
    text = tables(root, rc=1)
    error = capsys.readouterr().err
    assert error.startswith(f"error: results/runs/{bad.name}: ") and told in error and error.count("\n") == 1
    assert section(text, FULL)["B"][0]["our Δ"] == "-1.00" and bad.name not in text


@pytest.mark.parametrize("change", ["copied", "config", "seed"])
def test_a_copy_is_not_averaged_in_twice_and_a_changed_config_has_another_key(root, capsys, change):
    bad = record(root)
    content = json.loads(bad.read_text())
    if change == "copied":
        bad = bad.with_stem("f" * 16)
        content["key"] = "f" * 16
    elif change == "config":
        content["config"]["recipe"]["recover"]["lr"] = 0.5
    else:
        content["config"]["seed"] = 7
    bad.write_text(json.dumps(content))
    numbers = section(tables(root, rc=1), FULL)["A"][0]
    assert numbers.get("seeds", "") == ("1" if change == "copied" else "")
    error = capsys.readouterr().err
    assert f"{bad.name}: key {bad.stem} is not that of its config" in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "", "[1]", "null", '"3"', "\x00\xff"])
def test_a_file_that_is_no_record(root, capsys, text):
    record(root)
    (root / "results/runs/foreign.json").write_text(text)
    assert "-1.00" in tables(root, rc=1)
    error = capsys.readouterr().err
    assert error.startswith("error: results/runs/foreign.json: ") and error.count("\n") == 1


@pytest.mark.parametrize(("old", "new", "told"), [
    (", source: Table 1", "", "claim.source: field required"),
    (", provenance: paper", "", "claim.provenance: field required"),
    ("source: Table 1", "source: ''", "claim.source: string should have at least 1 character, not ''"),
    ("93.04", "high", "claim.baseline: input should be a valid number, not 'high'"),
    ("macs_drop", "mac_drop", "claim.mac_drop is unknown"),
    ("claim: {", "claim: 3 #", "claim: input should be a valid dictionary or instance of Claim, not 3"),
    ("experiments=some2020/A", "experiments=some2020/B", "must name experiments=some2020/A"),
    ("claim: {", "claim: [", "content cannot be read"),
    ("override /recipe", "override /recipee", "defaults: {'override /recipee': 'some2020'} is no choice of a row"),
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


def test_a_paper_nobody_described_and_a_root_without_rows(root, tmp_path_factory, capsys):
    (root / "experiments/papers.yaml").write_text("other: {}\n")
    assert tables(root, rc=1).startswith("# some2020\n")
    assert capsys.readouterr().err == (
        "error: experiments/papers.yaml: some2020 must be a mapping with title, authors, venue\n")
    (empty := tmp_path_factory.mktemp("empty")).joinpath("experiments").mkdir()
    assert main(["tables", "--root", str(empty)]) == 1
    assert "error: experiments: no row" in capsys.readouterr().err


# ---------------------------------------------------------------- files of a stranger

EVIL = '<script>alert(1)</script> | [x](y) =cmd()'


def test_what_a_file_says_ends_no_cell_and_opens_no_html(root):
    (root / "experiments/papers.yaml").write_text(f"some2020: {{title: '{EVIL}', note: '{EVIL}', venue: '{EVIL}'}}\n")
    claim(root, f"delta: -1, setting: '{EVIL}'", place=f"source: '{EVIL}', provenance: '=1+1'")
    record(root, method="=HYPERLINK()", baseline__source=f"@{EVIL}")
    text = tables(root)
    assert "<script" not in text + (root / "results/README.md").read_text()
    rows = section(text, FULL)["A"]
    assert len({len(line) for line in text.splitlines() if line.startswith("| [A]")}) and rows[0]["claim from"]
    with (root / "results/results.csv").open(newline="") as file:
        line = next(line for line in csv.DictReader(file) if line["row"] == "some2020/A")
    assert line["claim_provenance"] == "'=1+1" and line["method"] == "'=HYPERLINK()" and line["delta"] == "-1"
    assert line["baseline_source"] == f"'@{EVIL}"


@pytest.mark.parametrize("field", ["baseline__source", "method", "latency__device", "env__torch", "started"])
def test_a_text_that_a_terminal_would_act_on_is_refused(root, capsys, field):
    record(root, **{field: "\x1b]0;owned\x07"})
    tables(root, rc=1)
    error = capsys.readouterr().err
    assert f"{field.replace('__', '.')}: string should match pattern" in error and "\x1b" not in error


@pytest.mark.parametrize("command", ["python run.py experiments=some2020/A; touch x", "python run.py $(touch x) "
                                     "experiments=some2020/A", "python run.py experiments=some2020/A && touch x"])
def test_a_command_that_does_more_than_run_a_row_is_refused(root, capsys, command):
    file = root / "experiments/some2020/A.yaml"
    file.write_text(file.read_text().replace("python run.py experiments=some2020/A", command))
    tables(root, rc=1)
    assert capsys.readouterr().err.startswith("error: experiments/some2020/A.yaml: command")


def test_files_without_an_end_and_without_a_bound_are_one_line_each(root, capsys):
    record(root, row="B")
    os.mkfifo(root / "results/runs/pipe.json")
    with (root / "results/runs/large.json").open("wb") as file:
        file.truncate(3 * 2**30)                                  # without a byte on the disk
    bomb = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in pairwise("abcdefghijk"))
    (root / "experiments/some2020/A.yaml").write_text(bomb)
    assert set(section(tables(root, rc=1), FULL)) == {"B"}
    told = sorted(capsys.readouterr().err.splitlines())
    assert [line.split(": ")[1] for line in told] == [
        "experiments/some2020/A.yaml", "results/runs/large.json", "results/runs/pipe.json"]
    assert "aliases" in told[0] and "bytes is not read" in told[1] and "not a file" in told[2]
