"""Every claim of the papers has its controls: random filters, fresh weights and L1-norms, at the budget of its row."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from reprune import models
from reprune.pruning.probe import Probe
from reprune.results.compose_rows import found_in
from reprune.results.controls import CONTROLS, budget, controls_of
from reprune.results.rows import Row, read_rows

ROOT = Path(__file__).resolve().parents[1]
ROWS = {row.id: row for row in read_rows(ROOT, [])[0]}
CLAIMED = {name: controls_of(row, list(ROWS.values())) for name, row in ROWS.items() if row.claim}
FRESH = sorted({control.id for found in CLAIMED.values() for control in found["scratch"]})


@cache
def config(name: str):
    with found_in(ROOT), initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [f"experiments={name}"])


@cache
def look(model: str) -> Probe:
    """At an untrained net: what a budget leaves of it does not depend on its weights."""
    return Probe(models.build(OmegaConf.to_container(OmegaConf.create(model))), torch.zeros(1, 3, 32, 32))


def probe(row: Row) -> Probe:
    return look(OmegaConf.to_yaml(config(row.id).model, resolve=True))


def plan(row: Row, seed: int = 0) -> dict[str, torch.Tensor]:
    """What its allocation leaves, of random scores."""
    torch.manual_seed(seed)
    scores = {group.name: torch.rand(group.size) for group in probe(row).groups}
    return instantiate(config(row.id).method.allocation)(scores, probe(row))


def test_there_are_claims_to_hold_controls_against():
    assert len(CLAIMED) >= 12 and not {name for name in CLAIMED if ROWS[name].choices["method"] == "random"}


@pytest.mark.parametrize("name", CLAIMED)
def test_no_control_of_a_claim_is_missing(name):
    assert {control: bool(found) for control, found in CLAIMED[name].items()} == dict.fromkeys(CONTROLS, True)


@pytest.mark.parametrize("name", CLAIMED)
def test_controls_meet_the_budget_of_their_row(name):
    """Rates: the very widths of the row. A budget: no more than it, and at most 2 % of the net below."""
    row, net = ROWS[name], probe(ROWS[name])
    for control in {control.id: control for role in ("random", "l1") for control in CLAIMED[name][role]}.values():
        kept = plan(control)
        if share := row.config.get("method.allocation.macs") or row.config.get("method.allocation.params"):
            unit = "macs" if "macs" in config(control.id).method.allocation else "params"
            left = getattr(net.cost(kept), unit) / getattr(net.original.cost, unit)
            assert unit in budget(row) and share - 0.02 < left <= share, control.id
        else:
            widths = [{name: int(mask.sum()) for name, mask in some.items()} for some in (kept, plan(row, seed=1))]
            assert widths[0] == widths[1], control.id


@pytest.mark.parametrize("name", FRESH)
def test_fresh_weights_train_as_long_as_their_baseline(name):
    row, recipe = config(name.removesuffix("-scratch")), config(name).recipe
    assert recipe.baseline == row.recipe.baseline and config(name).dataset == row.dataset
    assert all(recipe.recover[part] == recipe.baseline[part] for part in ("epochs", "optimizer"))
