"""Tables say what the records say: every number, nothing averaged that differs, nothing of a bad file."""

import json
from pathlib import Path

import pytest
from project import CHANGED, CLAIM, FULL, OWN, PAPER, ROW, SHORT, claim, index, project, record, section, tables

from reprune.tables import main

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def root(tmp_path):
    return project(tmp_path)




def test_rows_without_a_run_say_so_and_show_their_command(root):
    text = tables(root)
    numbers, cost, source = section(text, FULL)["B"]
    assert numbers == {"row": "[B](../experiments/some2020/B.yaml)", "paper: baseline → pruned": "93.04 → 92.54",
                       "paper Δ": "-0.50", "ours: baseline → pruned": "not run"}
    assert cost["MACs removed, %: paper / ours"] == "27.6 / –"
    assert source["claim from"] == "Table 1 (paper)" and source["what it is"] == "Someone 2020, Table 1, Net-B"
    assert source["command"] == "`python run.py experiments=some2020/B`"
    assert section(text, OWN)["own-half"][0] == {"row": "[own-half](../experiments/some2020/own-half.yaml)",
                                                 "method": "l1", "baseline → pruned": "not run"}
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
    ({"epochs__recover": 80, "config__recipe__recover__epochs": 80}, None),
])
def test_a_run_that_is_not_what_the_row_says_is_not_the_row(root, changes, setting):
    record(root, top1=95.0, **changes)
    text = tables(root)
    assert section(text, CHANGED)["A"][0].get("setting") == setting
    assert section(text, FULL)["A"][0]["ours: baseline → pruned"] == "other runs only, see below"


def test_rows_of_our_own_say_what_they_ran(root):
    record(root, row="own-half", epochs={"baseline": 0, "sparse": 2, "recover": 1}, paper_epochs=None,
           baseline__source="net.th sha256:12")
    numbers, source = section(tables(root), OWN)["own-half"]
    assert numbers["epochs"] == "given weights, sparse 2, recover 1" and numbers["Δ"] == "-1.00"
    assert numbers["method"] == "l1" and numbers["baseline → pruned"] == "93.00 → 92.00"
    assert numbers["parameters / MACs removed, %"] == "25.0 / 50.0" and "claim from" not in source
    assert not any("paper" in column for column in numbers)


def test_accuracy_before_recovery_is_shown_where_every_run_has_it(root):
    record(root, pruned__top1_before_recovery=40.0)
    record(root, seed=1, pruned__top1_before_recovery=42.0)
    record(root, row="own-half", pruned__top1_before_recovery=30.0)
    record(root, row="B", pruned__top1_before_recovery=None)
    text = tables(root)
    assert section(text, FULL)["A"][0]["before recovery"] == "41.00 ± 1.41"
    assert section(text, FULL)["B"][0]["before recovery"] == ""
    assert section(text, OWN)["own-half"][0]["before recovery"] == "30.00"


def test_epochs_between_rounds_do_not_make_a_full_recipe_a_changed_one(root):
    record(root, epochs={**PAPER, "recover": PAPER["recover"] + 12})           # 12 layers, an epoch after each
    assert section(tables(root), FULL)["A"][0]["seeds"] == "1"


# ---------------------------------------------------------------- what papers state

@pytest.mark.parametrize(("stated", "accuracy", "delta", "params", "macs"), [
    ("baseline: 93.04, pruned: 92.54, params_drop: 13.7, macs_drop: 27.6", "93.04 → 92.54", "-0.50", "13.7", "27.6"),
    ("baseline: 93.04, pruned: 92.5, delta: -0.55, macs_drop: null", "93.04 → 92.50", "-0.55", "–", "–"),
    ("delta: -0.3, params_drop_min: 50", "–", "-0.30", "> 50", "–"),
    ("better_than_baseline: true, params_drop: 34", "–", "> 0", "34.0", "–"),
    ("no_accuracy_loss: true, macs_drop_max: 33.5", "–", "≥ 0", "–", "≤ 33.5"),
    ("baseline: 93, macs_drop_min: 20, macs_drop_max: 50", "93.00 → –", "–", "–", "> 20, ≤ 50"),
    ("pruned: 93.4, better_than_baseline: true", "– → 93.40", "> 0", "–", "–"),
    ("metric: top5, baseline: 89.9, delta: -1.7", "89.90 → – (top-5)", "-1.70 (top-5)", "–", "–"),
    ("better_than_baseline: true, params_ratio: 8, macs_ratio: 3", "–", "> 0", "87.5 †", "66.7 †"),
    ("params_ratio: 8, params_drop: 87.4, macs_drop: 66.7, derived: [macs_drop]", "–", "–", "87.4", "66.7 †"),
    ("params_ratio_min: 2, params_ratio_max: 3, macs_kept: 30", "–", "–", "> 50 †, ≤ 66.7 †", "70.0 †"),
    ("baseline: 93, pruned: 92, derived: [baseline]", "93.00 † → 92.00", "-1.00", "–", "–"),
])
def test_a_claim_is_shown_as_far_as_the_paper_states_it(root, stated, accuracy, delta, params, macs):
    claim(root, stated)
    record(root)
    numbers, cost, _ = section(tables(root), FULL)["A"]
    assert numbers["paper: baseline → pruned"] == accuracy and numbers["paper Δ"] == delta
    assert cost["parameters removed, %: paper / ours"] == f"{params} / 25.0"
    assert cost["MACs removed, %: paper / ours"] == f"{macs} / 50.0"
    assert numbers["our Δ"] == "-1.00"


def test_marks_are_explained_where_they_occur(root):
    record(root)
    plain = tables(root).split("## ")[0]
    assert not any(mark in plain for mark in ("†", "≤", "Top-5", "≥ 0"))
    claim(root, "metric: top5, better_than_baseline: true, params_ratio: 8, macs_drop_max: 50")
    marked = tables(root).split("## ")[0]
    assert all(f"\n- {text}" in marked for text in ("**†**", "**>** and **≤**", "**Top-5**", "A Δ **> 0**", "**–**"))


def test_the_setting_and_what_else_a_paper_states_stand_beside_the_source(root):
    claim(root, 'delta: 1, setting: "depth not stated", reconstruction: "depth 20", params_m: 0.59, from_error: true, '
                'baseline_source: README, speedup: 1.3', place="source: abstract, provenance: abstract")
    source = section(tables(root), FULL)["A"][2]
    assert source["the paper's setting"] == "depth not stated" and source["reconstructed here"] == "depth 20"
    assert source["claim from"] == "abstract; printed as errors; baseline: README"
    assert source["also stated"] == "params (M) 0.59, speedup 1.3"
    assert section(tables(root), FULL)["B"][2]["the paper's setting"] == ""


@pytest.mark.parametrize(("stated", "told"), [
    ("baseline: 93.04", "claim must state what a run can be held against"),
    ("setting: little loss", "claim must state what a run can be held against"),
    ("delta: small", "claim.delta must be points, not 'small'"),
    ("better_than_baseline: false", "claim.better_than_baseline must be true, not False"),
    ("pruned: 36.7, metric: ap", "claim.metric must be top1 or top5, not 'ap'"),
    ("params_drop_min: 120", "claim.params_drop_min must be percent, not 120"),
    ("params_ratio: 0.5", "claim.params_ratio must be 1 or more, not 0.5"),
    ("delta: -1, setting: 3", "claim.setting must be text, not 3"),
    ("macs_drop: 50, derived: macs_drop", "claim.derived must be list of texts, not 'macs_drop'"),
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


def test_delta_may_differ_from_the_printed_accuracies_by_rounding(root):
    claim(root, "baseline: 93.04, pruned: 92.54, delta: -0.515")
    assert section(tables(root), FULL)["A"][0]["paper: baseline → pruned"] == "93.04 → 92.54"


# ---------------------------------------------------------------- what papers.yaml adds

BESIDE = "Beside other methods"


def describe(root, fields):
    (root / "experiments/papers.yaml").write_text(f"some2020: {{title: Some Paper, {fields}}}\nour: {{title: Ours}}\n")


@pytest.fixture
def controls(root):
    """Rows of a folder of our own, one of them run twice."""
    (root / "experiments" / "our").mkdir()
    for name in ("net-l1", "net-random", "wide-l1"):
        text = ROW.format(name=name).replace("some2020/", "our/").replace("method: l1", f"method: {name.split('-')[1]}")
        (root / f"experiments/our/{name}.yaml").write_text(text)
    for seed, top1 in ((0, 92.0), (1, 91.0)):
        record(root, seed=seed, top1=top1, experiment="our/net-l1", paper_epochs=None)
    return root


def test_rows_of_other_folders_stand_beside(controls):
    describe(controls, "beside: [our/net-random, our/*-l1]")
    text = tables(controls)
    rows = section(text, BESIDE)
    assert list(rows) == ["our/net-l1", "our/net-random", "our/wide-l1"]
    numbers, source = rows["our/net-l1"]
    assert numbers["row"] == "[our/net-l1](../experiments/our/net-l1.yaml)" and numbers["method"] == "l1"
    assert numbers["baseline → pruned"] == "93.00 → 91.50 ± 0.71" and numbers["Δ"] == "-1.50"
    assert numbers["seeds"] == "2" and numbers["runs"].count("](runs/") == 2
    assert source["command"] == "`python run.py experiments=our/net-l1`"
    assert rows["our/net-random"][0]["method"] == "random"
    assert rows["our/net-random"][0]["baseline → pruned"] == "not run"
    assert "## Runs" not in text                            # those of the page's own rows
    own = (controls / "results/our.md").read_text()         # and the folder itself is as it was
    assert section(own, "Rows")["net-l1"][0]["Δ"] == "-1.50" and BESIDE not in own and "no claim" not in own
    assert {paper: line["runs"] for paper, line in index(controls).items()} == {"our": "2", "some2020": "0"}


def test_a_row_stands_beside_once_and_never_beside_its_own_folder(controls):
    describe(controls, "beside: ['*/net-l1', 'our/net-*', '*/*1', '*/A']")
    (controls / "experiments/our/A.yaml").write_text(ROW.format(name="A").replace("some2020/", "our/") + CLAIM)
    rows = section(tables(controls), BESIDE)
    assert {name: len(lines) for name, lines in rows.items()} == {          # numbers, source
        "our/A": 2, "our/net-l1": 2, "our/net-random": 2, "our/wide-l1": 2}
    assert rows["our/A"][1]["claim from"] == "Table 1 (paper)"


@pytest.mark.parametrize(("fields", "told"), [
    ("beside: [our/net-*, our/nut-*]", "some2020.beside 'our/nut-*' matches no row of another folder"),
    ("beside: [some2020/A]", "some2020.beside 'some2020/A' matches no row of another folder"),
    ("beside: our/net-l1", "some2020.beside must be list of texts, not 'our/net-l1'"),
    ("beside: [3]", "some2020.beside must be list of texts, not [3]"),
    ("arxiv: 1608.08710", "some2020.arxiv must be text, not 1608.0871"),
    ("reconstruction: true", "some2020.reconstruction must be text, not True"),
    ("besides: [our/net-l1]", "some2020.besides is unknown, allowed: title, authors"),
])
def test_a_bad_description_is_one_line_and_the_rest_is_built(controls, capsys, fields, told):
    describe(controls, fields)
    text = tables(controls, rc=1)
    error = capsys.readouterr().err
    assert error.startswith("error: experiments/papers.yaml: some2020.") and told in error and error.count("\n") == 1
    assert set(section(text, FULL)) == {"A", "B"} and BESIDE not in text
    assert (controls / "results/our.md").read_text().startswith("# Ours\n")


def test_a_reconstruction_is_marked_on_its_page_and_in_the_index(root):
    record(root)
    tables(root)
    assert "econstruction" not in (root / "results/README.md").read_text()
    describe(root, "authors: A. Someone, doi: 10.1/23, note: A note., reconstruction: The formula is ours.")
    text = tables(root)
    assert text.split("\n\n")[:4] == [
        "# Some Paper", "A. Someone, [doi:10.1/23](https://doi.org/10.1/23)",
        "**Reconstruction.** The formula is ours.", "A note."]
    assert "*Reconstruction*: " in (root / "results/README.md").read_text()
    assert index(root)["some2020"]["reconstruction"] == "in part"


# ---------------------------------------------------------------- group norms

NORMS = "Group norms after sparse training"


def sparse(root, norms, weight=None, **changes):
    penalties = {} if weight is None else {"penalties": {"hgsr": {"kind": "group_lasso", "weight": weight}}}
    method = {"name": "l1", "allocation": {"rates": {"1": 0.5}}, **penalties}
    return record(root, group_norms=norms, config__method=method, **{"epochs__sparse": 5, **changes})


def test_group_norms_show_what_sparse_training_emptied(root):
    layers = {"conv1": [2.0, 0.019, 0.005, 0.0], "conv2": [0.004, 0.5]}
    key = sparse(root, layers, weight=0.001).stem
    line = section(tables(root), NORMS)["A"][0]
    assert line == {"row": "[A](../experiments/some2020/A.yaml)", "model": "net", "penalty's weight": "hgsr 0.001",
                    "seed": "0", "sparse epochs": "5", "groups": "6", "largest": "2", "median": "0.012",
                    "% below 1 % of the layer's largest": "66.7", "% below 0.01": "50.0",
                    "run": f"[{key[:8]}](runs/{key}.json)"}


def test_plain_training_stands_next_to_the_sparse_runs_of_its_net(root):
    sparse(root, {"conv1": [1.0, 0.001]}, weight=0.001, row="B", model="deep", seed=1)
    sparse(root, {"conv1": [1.0, 0.001]}, weight=0.001, seed=1)
    sparse(root, {"conv1": [1.0, 0.9]}, weight=0.0)
    sparse(root, {"conv1": [0.0, 0.0]}, row="own-half", model="deep")
    record(root, row="B")                                   # not trained sparse: not listed
    text = tables(root).split(f"## {NORMS}")[1].split("## Runs")[0]
    lines = [[c.strip() for c in line.split("|")] for line in text.splitlines() if line.startswith("|")][2:]
    assert [(c[2], c[4], c[-4]) for c in lines] == [
        ("deep", "hgsr 0.001", "50.0"), ("deep", "", "100.0"),
        ("net", "hgsr 0.0", "0.0"), ("net", "hgsr 0.001", "50.0")]
    assert [c[3] for c in lines[2:]] == ["`method.penalties.hgsr.weight=0.0`", "`method.penalties.hgsr.weight=0.001`"]


def test_a_page_without_sparse_training_has_no_group_norms(root):
    record(root, group_norms=None)
    record(root, seed=1)
    assert NORMS not in tables(root)


def test_group_norms_of_rows_beside_are_shown_too(controls):
    describe(controls, "beside: [our/net-random]")
    sparse(controls, {"conv1": [1.0]}, experiment="our/net-random", method="random", paper_epochs=None)
    assert list(section(tables(controls), NORMS)) == ["our/net-random"]


def test_index_counts_claims_once_and_by_their_weakest_verdict(root):
    record(root, top1=93.0, config__recipe__recover__lr=0.01)
    record(root, row="B", epochs__recover=1)
    tables(root)
    assert index(root)["some2020"] == {
        "paper": "[Some Paper](some2020.md)", "venue": "CONF 2020", "claims": "2", "reproduced": "1", "within x": "0",
        "off by x": "0", "not comparable": "0", "changed only": "0", "short only": "1", "not run": "0",
        "own rows run": "0", "runs": "2"}
    record(root, top1=91.0)                                 # another setting of A
    record(root, top1=93.0, epochs__recover=1, config__recipe__recover__lr=0.01, seed=1)        # adds nothing
    tables(root)
    assert (index(root)["some2020"]["reproduced"], index(root)["some2020"]["off by x"]) == ("0", "1")


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
    ({"pruned__top1_before_recovery": 101}, "pruned.top1_before_recovery must be percent or null, not 101"),
    ({"group_norms": [1.0]}, "group_norms must be lists of norms or null, not [1.0]"),
    ({"group_norms": {}}, "group_norms must be lists of norms or null, not {}"),
    ({"group_norms": {"conv1": 1.0}}, "group_norms must be lists of norms or null"),
    ({"group_norms": {"conv1": []}}, "group_norms must be lists of norms or null"),
    ({"group_norms": {"conv1": [1.0, -0.1]}}, "group_norms must be lists of norms or null"),
    ({"group_norms": {"conv1": [float("nan")]}}, "group_norms must be lists of norms or null"),
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
