"""Tables say what the records say: every number, nothing averaged that differs, claims as far as they are stated."""

import pytest
from project import CHANGED, FULL, OWN, PAPER, SHORT, claim, project, record, section, tables


@pytest.fixture
def root(tmp_path):
    return project(tmp_path)


def test_rows_without_a_run_say_so_and_show_their_command(root):
    text = tables(root)
    row, own = section(text, FULL)["B"][0], section(text, OWN)["own-half"][0]
    assert row == {"row": "[B](#b)", "paper: baseline → pruned": "93.04 → 92.54", "paper Δ": "-0.50",
                   "ours: baseline → pruned": "not run", "MACs removed, %: paper / ours": "27.6 / –",
                   "file": "[some2020/B.yaml](../experiments/some2020/B.yaml)", "claim from": "Table 1 (paper)",
                   "what it is": "Someone 2020, Table 1, Net-B", "command": "`python run.py experiments=some2020/B`"}
    assert (own["row"], own["method"], own["baseline → pruned"]) == ("[own-half](#own-half)", "l1", "not run")
    assert "# Some Paper" in text and "make tables" in text and SHORT not in text and "## Runs" not in text


def test_a_run_stands_beside_the_claim(root):
    key = record(root, pruned__top1_best=93.1).stem
    numbers = section(tables(root), FULL)["A"][0]
    assert numbers["ours: baseline → pruned"] == "93.00 → 92.00" and numbers["our Δ"] == "-1.00"
    assert numbers["best epoch on test"] == "93.10" and numbers["seeds"] == "1"
    assert numbers["epochs, run/paper"] == "baseline 160/160, recover 40/40"
    assert numbers["runs"] == [f"[{key[:8]}](runs/{key}.json): seed 0, 93.00 → 92.00, commit abc123, torch 2.15.0"]
    assert numbers["parameters removed, % (paper / ours)"] == "13.7 / 25.0"
    assert numbers["MACs removed, %: paper / ours"] == "27.6 / 50.0"
    assert numbers["measured speed-up (cpu, batch 64, 2 threads)"] == "1.60x"


def test_seeds_are_averaged_and_delta_is_against_the_baseline_of_the_same_seed(root):
    for seed, base, top1 in ((0, 93.0, 92.0), (1, 94.0, 92.5), (2, 92.0, 93.0)):
        record(root, seed=seed, base=base, top1=top1)
    numbers = section(tables(root), FULL)["A"][0]
    assert numbers["ours: baseline → pruned"] == "93.00 → 92.50 ± 0.50"      # sample standard deviation
    assert numbers["our Δ"] == "-0.50" and numbers["seeds"] == "3"           # (-1.0 - 1.5 + 1.0) / 3
    assert [run.split(",")[1] for run in numbers["runs"]] == [" 93.00 → 92.00", " 94.00 → 92.50", " 92.00 → 93.00"]


def test_speed_of_different_machines_is_not_averaged(root):
    record(root)
    record(root, seed=1, latency__device="cuda", pruned__latency_ms=2.0)
    record(root, row="B", latency__threads=1)
    first, second = (section(tables(root), FULL)[row][0] for row in "AB")
    assert {name: value for name, value in first.items() if "speed-up" in name} == {
        "measured speed-up (cpu, batch 64, 2 threads)": "1.60x",
        "measured speed-up (cuda, batch 64, 2 threads)": "4.00x"}
    assert second["measured speed-up (cpu, batch 64, 1 thread)"] == "1.60x"


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
    assert SHORT not in text and section(text, FULL)["A"][0]["baseline"] == "net.th sha256:12"
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
    numbers = section(tables(root), OWN)["own-half"][0]
    assert numbers["epochs"] == "given weights, sparse 2, recover 1" and numbers["Δ"] == "-1.00"
    assert numbers["method"] == "l1" and numbers["baseline → pruned"] == "93.00 → 92.00"
    assert numbers["parameters removed, %"] == "25.0" and numbers["MACs removed, %"] == "50.0"
    assert not any("paper" in column or "claim" in column for column in numbers)


def test_accuracy_before_recovery_is_shown_where_every_run_has_it(root):
    record(root, pruned__top1_before_recovery=40.0)
    record(root, seed=1, pruned__top1_before_recovery=42.0)
    record(root, row="own-half", pruned__top1_before_recovery=30.0)
    record(root, row="B", pruned__top1_before_recovery=None)
    text = tables(root)
    assert section(text, FULL)["A"][0]["before recovery"] == "41.00 ± 1.41"
    assert "before recovery" not in section(text, FULL)["B"][0]
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
    numbers = section(tables(root), FULL)["A"][0]
    assert numbers["paper: baseline → pruned"] == accuracy and numbers["paper Δ"] == delta
    assert numbers["parameters removed, % (paper / ours)"] == f"{params} / 25.0"
    assert numbers["MACs removed, %: paper / ours"] == f"{macs} / 50.0"
    assert numbers["our Δ"] == "-1.00"


def guide(text):
    return text.split("## How to read this")[1].split("## ")[0]


def test_marks_are_explained_where_they_occur(root):
    record(root)
    plain = guide(tables(root))
    assert not any(mark in plain for mark in ("†", "≤", "Top-5", "≥ 0"))
    claim(root, "metric: top5, better_than_baseline: true, params_ratio: 8, macs_drop_max: 50")
    marked = guide(tables(root))
    assert all(f"\n- {text}" in marked for text in ("**†**", "**>** and **≤**", "**Top-5**", "A Δ **> 0**", "**–**"))


def test_the_setting_and_what_else_a_paper_states_stand_beside_the_source(root):
    claim(root, 'delta: 1, setting: "depth not stated", reconstruction: "depth 20", params_m: 0.59, from_error: true, '
                'baseline_source: README, speedup: 1.3', place="source: abstract, provenance: abstract")
    source = section(tables(root), FULL)["A"][0]
    assert source["the paper's setting"] == "depth not stated" and source["reconstructed here"] == "depth 20"
    assert source["claim from"] == "abstract; printed as errors; baseline: README"
    assert source["also stated"] == "params (M) 0.59, speedup 1.3"
    assert "the paper's setting" not in section(tables(root), FULL)["B"][0]


def test_delta_may_differ_from_the_printed_accuracies_by_rounding(root):
    claim(root, "baseline: 93.04, pruned: 92.54, delta: -0.515")
    assert section(tables(root), FULL)["A"][0]["paper: baseline → pruned"] == "93.04 → 92.54"
