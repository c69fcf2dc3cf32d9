"""What has run, in numbers: means against plain Python, versions kept apart, bad records, the verdict on each claim."""

import copy
import json
import random
import statistics
from pathlib import Path

import pytest
from project import PAPER, ROW, project, record

from reprune.results.lines import COLUMNS, collect, summary
from reprune.results.records import read_record
from reprune.results.verdict import KINDS, kind, verdict
from reprune.runs import fingerprint as code
from reprune.runs.store import key_of
from reprune.schema import ENDS, Claim

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def root(tmp_path):
    return project(tmp_path)


def lines(root, row="A"):
    errors = []
    found = [line for line in summary(root, errors) if line["row"] == f"some2020/{row}"]
    assert errors == []
    return found


def test_the_numbers_are_those_of_plain_python(root):
    rng, expected = random.Random(1), {}
    for lr in range(7):
        runs = [(rng.uniform(90, 95), rng.uniform(80, 95), rng.uniform(10, 40), rng.randrange(1, 999),
                 rng.uniform(1, 5)) for _ in range(1 + lr % 4)]
        for seed, (base, top1, before, params, ms) in enumerate(runs):
            record(root, seed=seed, base=base, top1=top1, pruned__top1_before_recovery=before, pruned__params=params,
                   pruned__latency_ms=ms, config__recipe__recover__lr=lr, seconds={"baseline": ms, "prune": 1})
        expected[f"recipe.recover.lr={lr}"] = runs
    found = {line["setting"]: line for line in lines(root)}
    assert set(found) == set(expected)
    for setting, runs in expected.items():
        base, top1, before, params, ms = (list(column) for column in zip(*runs, strict=True))
        delta = [after - unpruned for unpruned, after in zip(base, top1, strict=True)]
        line, many = found[setting], len(runs) > 1
        assert (line["seeds"], len(line["keys"].split())) == (len(runs), len(runs))
        for name, values in (("baseline_top1", base), ("pruned_top1", top1), ("delta", delta),
                             ("params_pruned", params), ("top1_before_recovery", before),
                             ("seconds", [m + 1 for m in ms]), ("params_drop", [100 - p / 10 for p in params]),
                             ("latency_ratio", [8 / m for m in ms])):
            assert line[name] == pytest.approx(statistics.mean(values), abs=1e-5), name
        for name, values in (("pruned_top1_std", top1), ("delta_std", delta)):
            assert line[name] == (pytest.approx(statistics.stdev(values), abs=1e-5) if many else None)


def test_the_keys_of_a_line_lead_to_its_records_in_the_order_of_the_seeds(root):
    keys = {seed: record(root, seed=seed).stem for seed in (2, 0, 1)}
    (line,) = lines(root)
    assert line["keys"].split() == [keys[seed] for seed in range(3)] and line["seeds"] == 3


def test_every_column_is_there_for_rows_without_runs_too(root):
    record(root)
    assert all(list(line) == COLUMNS for line in summary(root))
    (line,) = lines(root, "B")
    assert (line["section"], line["seeds"], line["delta"], line["verdict"]) == ("not run", 0, None, "not run")
    assert (line["claim_delta"], line["claim_macs_drop"], line["claim_source"]) == (-0.5, 27.6, "Table 1")
    assert line["command"] == "python run.py experiments=some2020/B" and line["method"] == "l1"


def test_latency_is_that_of_the_machine_with_most_runs(root):
    for seed, (device, ms) in enumerate((("a", 1), ("b", 2), ("b", 4))):
        record(root, seed=seed, latency__device=device, pruned__latency_ms=ms)
    (line,) = lines(root)
    assert (line["latency_ratio"], line["latency_at"]) == (3.0, "b, batch 64, 2 threads")


# ---------------------------------------------------------------- versions

NOW = {"method": "aaaa", "dataset": "bbbb", "model": "cccc"}


def test_runs_of_other_code_stand_on_lines_of_their_own(root):
    record(root, seed=0, code=NOW)
    record(root, seed=1, code=dict(reversed(NOW.items())))
    record(root, seed=2, code={**NOW, "method": "dddd"})
    record(root, seed=3)
    parts = "code.dataset={}, code.method={}, code.model={}"
    assert {line["setting"]: line["seeds"] for line in lines(root)} == {
        parts.format("bbbb", "aaaa", "cccc"): 2, parts.format("bbbb", "dddd", "cccc"): 1,
        parts.format("unknown", "unknown", "unknown"): 1}


def test_the_commits_of_a_line_are_listed(root):
    record(root, seed=0, code=NOW)
    record(root, seed=1, code=NOW, env={"git": "fff0", "torch": "2.15.0"})
    record(root, seed=2, code=NOW, env={})
    (line,) = lines(root)
    assert line["commits"].split() == ["abc123", "fff0", "unknown"] and line["seeds"] == 3


def test_a_fingerprint_follows_the_code_and_not_its_comments(tmp_path, monkeypatch):
    def config(name):
        return {part: {"_target_": f"{name}.Mine", "inner": [{"_target_": "torch.optim.SGD"}]} for part in code.PARTS}

    texts = {"first": 'class Mine:\n    """Old."""\n    x = 1\n',
             "same": "class Mine:  # new\n    '''New'''\n    x = 1",
             "other": 'class Mine:\n    """Old."""\n    x = 2\n'}
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in texts.items():
        (tmp_path / f"{name}_method.py").write_text(text)
    first, same, other = (code.fingerprint(config(f"{name}_method")) for name in texts)
    assert first == same and list(first) == list(code.PARTS) and first["method"] != other["method"]


def test_a_version_is_that_of_all_that_a_target_needs():
    folder = REPOSITORY / "src/reprune/data"
    apart = {"__init__.py", "folder.py", "tree.py", "decode.py", "pictures.py", "rules.py"}       # not read for digits
    assert {file.name for file in code.sources("reprune.data.digits").values()} == {
        file.name for file in folder.glob("*.py")} - apart
    assert {"reprune.methods.l1", "reprune.pruning.probe", "reprune.structure.groups"} <= set(
        code.sources("reprune.methods.l1.FilterNorm"))


# ---------------------------------------------------------------- bad records

def leaves(node, prefix=()):
    for name, value in node.items():
        yield (*prefix, name)
        if isinstance(value, dict) and name != "config":
            yield from leaves(value, (*prefix, name))


def test_a_field_of_the_wrong_kind_is_named_and_never_averaged(root):
    """Every field, with values of every kind: each record is taken whole, or one line names the field."""
    bad, nan = [None, "x", "", " ", "1", -1, 0, 1, True, 1.5, 101, [], {}, [1.0], {"recover": 1}], float("nan")
    bad += [nan, float("inf"), {"a": []}, {"a": [1.0]}, {"a": [nan]}, {"a": [None]}, {"a": [-1]}, {"a": 1},
            {"baseline": 1, "sparse": 0, "recover": 0}, {"baseline": 1, "sparse": 0, "recover": 0.5}]
    good = record(root, seconds={"prune": 1.0}, code=NOW, control=None, group_norms={"conv1": [1.0]},
                  widths={"conv1": [16, 8]})
    changed, fine = {}, json.loads(good.read_text())
    for path in leaves(fine):
        for value in bad:
            content = copy.deepcopy(fine)
            node = content
            for part in path[:-1]:
                node = node[part]
            node[path[-1]] = value
            content["config"] = {**fine["config"], "n": len(changed)} if path[0] != "config" else content["config"]
            if path[0] not in ("key", "config"):
                content["key"] = key_of(content["config"])
            name = f"{len(changed):016x}" if path[0] in ("key", "config") else content["key"]
            file = root / f"results/runs/{name}.json"
            file.write_text(json.dumps(content))
            changed[file.stem] = path
    errors = []
    used = {run.record.key for line in collect(root, errors).lines for run in line.runs}
    told = {error.split("/")[2][:16]: error.split(": ", 1)[1] for error in errors}
    assert used | set(told) == {good.stem, *changed} and not used & set(told) and len(told) > 500
    for key, line in told.items():
        assert changed[key][0] in line and "\n" not in line, (changed[key], line)
    assert {"baseline", "pruned", "epochs", "latency", "widths", "seconds", "group_norms", "env", "seed", "config"} <= {
        changed[key][0] for key in told}


def test_the_schema_is_written_for_others_and_holds_for_committed_records():
    schema = json.loads((REPOSITORY / "results/record.schema.json").read_text())
    for file in REPOSITORY.glob("results/runs/*.json"):
        assert set(schema["required"]) <= set(json.loads(file.read_text()))
        assert read_record(file).overrides


@pytest.mark.parametrize("make", [
    lambda file: file.symlink_to("nowhere"), lambda file: file.mkdir(), lambda file: file.write_bytes(b"\xff\x00{"),
    lambda file: file.write_text("{" * 100_000), lambda file: file.write_text('{"schema": 1}')])
def test_a_foreign_file_does_not_stop_the_others(root, make):
    record(root)
    make(root / "results/runs/foreign.json")
    errors = []
    assert [line["seeds"] for line in summary(root, errors)] == [1, 0, 0]
    assert len(errors) == 1 and errors[0].startswith("results/runs/foreign.json: ")


def test_a_folder_with_signs_of_patterns_in_its_name(tmp_path):
    (tmp_path / "a[1] *?").mkdir()
    root = project(tmp_path / "a[1] *?")
    record(root)
    assert lines(root)[0]["seeds"] == 1


def test_without_a_list_errors_go_to_stderr(root, capsys):
    (root / "experiments/some2020/A.yaml").write_text(ROW.format(name="A") + "claim: {delta: 1}")
    assert len(summary(root)) == 2
    assert capsys.readouterr().err.startswith("error: experiments/some2020/A.yaml: claim.source: field required")


# ---------------------------------------------------------------- the verdict

OURS = {"delta": -0.5, "delta_std": 0.1, "seeds": 3, "pruned_top1": 92.5, "params_drop": 30.0, "macs_drop": 40.0}


def judge(stated, section="full", **ours):
    claim = Claim.read({"source": "Table 1", "provenance": "paper", **stated})
    return verdict(claim, section, {**OURS, **ours})


@pytest.mark.parametrize(("stated", "ours", "expected"), [
    ({"delta": -0.5}, {}, "reproduced (3 seeds)"),
    ({"delta": -0.2}, {}, "reproduced (3 seeds)"),                                  # a gap of just 0.3
    ({"delta": -0.19}, {}, "within 0.31 points (3 seeds)"),
    ({"delta": -0.19}, {"delta_std": 0.4, "seeds": 4}, "reproduced (4 seeds)"),     # tolerance 0.4
    ({"delta": 0.5}, {}, "within 1.00 points (3 seeds)"),
    ({"delta": 0.51}, {}, "off by 1.01 points (3 seeds)"),
    ({"delta": 0.51}, {"delta_std": 9.0}, "off by 1.01 points (3 seeds)"),          # scatter is no agreement
    ({"delta": -5}, {"delta": 2.0, "seeds": 1, "delta_std": None}, "reproduced (1 seed)"),
    ({"baseline": 93, "pruned": 92.9}, {}, "within 0.40 points (3 seeds)"),
    ({"pruned": 92.9}, {}, "within 0.40 points (3 seeds)"),
    ({"better_than_baseline": True}, {"delta": 0.01}, "reproduced (3 seeds)"),
    ({"better_than_baseline": True}, {"delta": 0.0}, "within 0.00 points (3 seeds)"),
    ({"no_accuracy_loss": True}, {"delta": 0.0}, "reproduced (3 seeds)"),
    ({"no_accuracy_loss": True}, {"delta": -0.1}, "within 0.10 points (3 seeds)"),
    ({"delta": -0.5, "params_drop": 30.5, "macs_drop": 40.5}, {}, "reproduced (3 seeds)"),
    ({"delta": -0.5, "params_drop": 30.6}, {}, "within 0.6 % of parameters (3 seeds)"),
    ({"delta": 1, "params_drop": 40, "macs_drop": 50}, {},
     "off by 1.50 points, 10.0 % of parameters, 10.0 % of MACs (3 seeds)"),
    ({"delta": -0.5, "macs_drop_min": 40}, {}, "within 0.0 % of MACs (3 seeds)"),   # "more than 40" is not 40
    ({"delta": -0.5, "macs_drop_min": 39.9}, {}, "reproduced (3 seeds)"),
    ({"delta": -0.5, "macs_drop_max": 45}, {}, "off by 5.0 % of MACs (3 seeds)"),
    ({"delta": -0.5, "macs_drop_min": 20, "macs_drop_max": 60}, {}, "reproduced (3 seeds)"),
    ({"delta": -0.5, "metric": "top5"}, {}, "not comparable: top-5 claimed, top-1 measured"),
    ({"delta": -0.5, "ambiguous": True}, {}, "not comparable: ambiguous in the paper"),
    ({"macs_drop": 40}, {}, "not comparable: no accuracy claimed"),
])
def test_the_verdict(stated, ours, expected):
    assert judge(stated, **ours) == expected


@pytest.mark.parametrize("section", ["short", "changed", "not run"])
def test_only_the_whole_recipe_is_judged(section):
    assert kind(judge({"delta": -5}, section)) == ("not run" if section == "not run" else "not comparable")


def test_a_better_run_never_gets_a_worse_verdict():
    rng = random.Random(0)
    for _ in range(300):
        stated = {"delta": rng.uniform(-2, 1), f"macs_drop{rng.choice(ENDS)}": rng.uniform(20, 60)}
        ours = {"delta": rng.uniform(-4, 2), "macs_drop": rng.uniform(10, 70), "seeds": rng.randrange(1, 5)}
        better = {**ours, "delta": ours["delta"] + rng.random(), "macs_drop": ours["macs_drop"] + rng.random()}
        assert KINDS.index(kind(judge(stated, **better))) <= KINDS.index(kind(judge(stated, **ours)))


def test_the_verdict_stands_in_the_lines(root):
    for seed in range(3):
        record(root, row="B", seed=seed, base=93.0, top1=92.3, epochs=PAPER)        # the paper: -0.50, 13.7 %, 27.6 %
    assert lines(root, "B")[0]["verdict"] == "reproduced (3 seeds)"
