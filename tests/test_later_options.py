"""An option that is added later changes nothing for the runs from before: key, table line."""

import copy
import json

import pytest
from conftest import ROOT

from reprune.results.records import config_id
from reprune.results.rows import departures, flat, read_row
from reprune.runs.store import NEUTRAL, baseline_key, counted, key_of, unused, without

OLD = next(record for file in sorted((ROOT / "results/runs").glob("*.json"))      # as records were before the options
           if (record := json.loads(file.read_text()))["method"] == "l1")
OLD["config"] = without(OLD["config"], unused(OLD["config"]))


def put(config: dict, name: str, value) -> dict:
    """A copy with a dotted name set, where the mapping it belongs to is there or is new at the top."""
    config = copy.deepcopy(config)
    *path, last = name.split(".")
    node = config
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return config


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_value_that_means_nothing_new_leaves_key_and_line_and_any_other_does_not(name):
    old = OLD["config"]
    assert key_of(old) == OLD["key"]
    new, other = put(old, name, NEUTRAL[name]), put(old, name, 8)
    for of in (key_of, flat, lambda config: config_id(counted(config))):
        assert of(new) == of(old) != of(other)
    if name.startswith(("speed.", "trainer.", "dataset.")):
        assert baseline_key(new) == baseline_key(old) != baseline_key(other)
    else:
        assert baseline_key(new) == baseline_key(old) == baseline_key(other)


def test_a_row_that_sets_a_later_option_is_held_against_what_a_run_did_before_there_was_one(tmp_path):
    for value, differs in ((1, set()), (8, {"method.allocation.multiple"})):
        file = tmp_path / "paper" / "row.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"# Title. python run.py experiments=paper/row\nmethod: {{allocation: {{multiple: {value}}}}}")
        row = read_row(file)
        assert departures(row, OLD, flat(OLD["config"])) == differs
        changed = put(OLD["config"], "method.allocation.multiple", 8)
        assert departures(row, OLD, flat(changed)) == {"method.allocation.multiple"} - differs


def test_rates_that_name_layers_by_number_and_by_name_have_one_key():
    def key(rates):
        return key_of({"method": {"allocation": {"rates": rates}}})
    assert key({1: 0.5, "layer2": 0.2}) == key({"layer2": 0.2, 1: 0.5}) == key({"1": 0.5, "layer2": 0.2})
    assert key({1: 0.5, "layer2": 0.2}) != key({1: 0.2, "layer2": 0.5})
