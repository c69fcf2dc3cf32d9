"""The net that sparse training leaves: measured by itself, and not pruned where it only guesses."""

import copy
import json

import pytest
import torch
from hydra.utils import instantiate

import reprune.training.classifier
from reprune.errors import UserError
from reprune.pipeline import run
from reprune.runs.measure import check_alive, top1
from reprune.runs.store import Store
from reprune.schema import Record

LONGER = ["method=hgsr", "recipe.baseline.epochs=8"]


@pytest.fixture
def killing(monkeypatch):
    """Sparse training that leaves no weight."""
    def fit(net, data, cfg, stage, part, **options):
        facts = reprune.training.classifier.fit(net, data, cfg, stage, part, **options)
        if part == "sparse":
            for parameter in net.parameters():
                parameter.data.zero_()
        return facts
    monkeypatch.setattr("reprune.pipeline.fit", fit)


@pytest.mark.parametrize("val_size", [200, 0])
def test_a_net_that_sparse_training_has_killed_is_not_pruned(val_size, configure, killing):
    cfg = configure(*LONGER, f"dataset.val_size={val_size}")
    images = "200 held-out" if val_size else "240 training"
    for _ in range(2):                                            # also where its training is found again
        with pytest.raises(UserError, match=rf"at chance: top-1 \d.* % of {images} images.*nothing is pruned; "
                                            r"lower method\.penalties\.hgsr\.weight, or train longer") as error:
            run(cfg)
        assert "\n" not in str(error.value)
    assert not Store(cfg).stage("pruned-0").facts.exists()


def test_without_pruning_it_is_a_finding(configure, killing):
    record = run(configure(*LONGER, "method.prunes=false"))
    assert record["sparse"]["val_top1"] < 20 < record["baseline"]["val_top1"]
    assert record["sparse"] == {name: record["pruned"][name] for name in ("top1", "val_top1")}
    assert record["epochs"]["recover"] == 0


def test_a_net_that_guessed_before_says_nothing_of_the_penalty(configure):
    cfg = configure("method=hgsr")
    data, example = instantiate(cfg.dataset), torch.zeros(1, 1, 8, 8)
    dead = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with torch.no_grad():
        dead[1].weight.zero_()
    view = {"example": example, "batch_size": 100, "seed": 0}
    check_alive(dead, copy.deepcopy(dead), data, view, "")
    alive = copy.deepcopy(dead)
    with torch.no_grad():
        x, y = next(iter(data.plain(240, 0)))
        alive[1].weight.copy_(torch.stack([x[y == c].mean(0).flatten() for c in range(10)]))
    assert top1(alive, data.val(100)) > 40
    check_alive(dead, alive, data, view, "")
    check_alive(alive, alive, data, view, "")
    with pytest.raises(UserError, match="lower it"):
        check_alive(alive, dead, data, view, "lower it")


def test_its_accuracy_is_in_the_record_and_on_the_screen(configure, capsys):
    record = run(configure("method=hgsr"))
    said = capsys.readouterr().out
    assert "top-1 % after sparse training" in said and f"{record['sparse']['top1']:.2f}" in said
    assert Record.read(json.dumps(record).encode()).sparse.val_top1 == record["sparse"]["val_top1"]
    assert "sparse" not in run(configure("method=l1")) and "sparse training" not in capsys.readouterr().out
