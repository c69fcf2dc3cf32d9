"""Which controls a paper's row has: what random filters, fresh weights and L1-norms reach at the same budget.

A control is a row without a claim, of the same model and data, whose file asks for the same budget as the row: what
`method.allocation` says of MACs, parameters, or rates and the layers they skip. It is found by what its file says, not
by its name.
"""

from __future__ import annotations

from reprune.results.rows import Row

CONTROLS = {"random": "random filters", "scratch": "the widths, trained from fresh weights", "l1": "smallest L1-norms"}
BUDGET = ("macs", "params", "rate", "rates", "skip", "rounding")
FROM_SCRATCH = "recipe.recover.from_scratch"


def budget(row: Row) -> dict[str, object]:
    """What the row's file says of it: {"macs": 0.5}, {"rates.layer1": 0.1, ...}."""
    said = {name.removeprefix("method.allocation."): value for name, value in row.config.items()
            if name.startswith("method.allocation.")}
    return {name: value for name, value in said.items() if name.split(".")[0] in BUDGET and value is not None}


def model(row: Row) -> dict[str, object]:
    """Its choice, and what the row's file changes of it: {"model": "vgg16", "model.hidden": 512}."""
    changed = {name: value for name, value in row.config.items() if name.startswith("model.")}
    return {"model": row.choices.get("model"), **changed}


def role(row: Row) -> str | None:
    """The control that a row can be."""
    if row.config.get(FROM_SCRATCH) is True:
        return "scratch"
    method = row.choices.get("method")
    return method if method in CONTROLS else None


def controls_of(row: Row, others: list[Row]) -> dict[str, list[Row]]:
    """-> name of a control -> the rows that are this control of `row`, itself if it is l1; an empty list: missing"""
    found: dict[str, list[Row]] = {name: [] for name in CONTROLS}
    if role(row) in found:
        found[role(row)].append(row)
    for other in others:
        same = model(other) == model(row) and other.choices.get("dataset") == row.choices.get("dataset")
        if other.claim is None and same and role(other) and budget(row) and budget(other) == budget(row):
            found[role(other)].append(other)
    return found
