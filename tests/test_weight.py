"""The weight of a penalty is chosen by a rule, from records: rows say what the rule says."""

import copy
import json

import pytest
from conftest import ROOT

from reprune.__main__ import main
from reprune.results.rows import read_row
from reprune.results.weight import chosen, losses, tried
from reprune.runs.store import key_of

CHOSEN = ["mitsuno2020/cifar10-resnet", "mitsuno2020/own-alexnet"]        # rows whose weight the rule chooses
SOME = json.loads((ROOT / "results/runs/0e9f87f5a21da76a.json").read_text())


def record(root, weight, before, after, seed=0, **other):
    """Of a sweep over weights: before, after: on held-out images."""
    made = copy.deepcopy(SOME)
    made["seed"] = made["config"]["seed"] = seed
    made["config"]["method"]["penalties"]["hgsr"]["weight"] = weight
    made["config"]["method"]["prunes"] = other.pop("prunes", False)
    made["baseline"] |= {"val_top1": before, "source": other.pop("source", "trained here")}
    made["epochs"] |= other
    made["config"]["recipe"]["sparse"]["epochs"] = made["epochs"]["sparse"]
    made["sparse"] = {"top1": 50.0, "val_top1": after}
    made["key"] = key_of(made["config"])
    folder = root / "results/runs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{made['key']}.json").write_text(json.dumps(made))


def test_the_largest_weight_that_costs_little_over_all_seeds(tmp_path, monkeypatch, capsys):
    for seed, drop in ((0, 0.0), (1, 0.4)):
        record(tmp_path, 1e-3, 90.0, 70.0, seed)
        record(tmp_path, 1e-4, 90.0, 90.0 - drop, seed)
        record(tmp_path, 1e-5, 90.0, 90.1, seed)
    record(tmp_path, 5e-4, 90.0, 90.0, source="some.th")        # has seen the images
    record(tmp_path, 6e-4, 90.0, 90.0, prunes=True)
    record(tmp_path, 7e-4, 90.0, 90.0, sparse=2)                # a shorter sweep
    found = losses(tried(tmp_path, SOME["experiment"]))
    assert found == pytest.approx({1e-3: 20.0, 1e-4: 0.2, 1e-5: -0.1}) and chosen(found) == 1e-4
    monkeypatch.chdir(tmp_path)
    assert main(["weight", SOME["experiment"]]) == 0
    assert "at most 0.3 points: 0.0001" in capsys.readouterr().out
    assert main(["weight", "some2020/other"]) == 1
    assert "experiments=some2020/other method.prunes=false" in capsys.readouterr().err


@pytest.mark.parametrize("row", CHOSEN)
def test_a_row_has_the_weight_that_the_rule_chooses(row):
    if not (found := tried(ROOT, row)):
        pytest.skip("no sweep over its weights is committed")
    assert read_row(ROOT / f"experiments/{row}.yaml").config["method.penalties.hgsr.weight"] == chosen(losses(found))


def test_nets_with_the_same_convs_have_the_same_weight():
    paper = [read_row(ROOT / f"experiments/mitsuno2020/{name}-resnet.yaml") for name in ("cifar10", "tinyimagenet")]
    assert paper[0].choices["model"] == paper[1].choices["model"]
    assert len({row.config["method.penalties.hgsr.weight"] for row in paper}) == 1
