"""What papers state, and what experiments/ says of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from reprune.schema.kinds import ENDS, Line, Model, Percent, Points, Positive, Ratio, Text, Yes


class Claim(Model):
    """What a paper states of one row of its tables; only what it happens to state, but source and provenance always.

    >>> Claim.read({"params_ratio": 8, "source": "abstract", "provenance": "abstract"}).params_drop
    87.5
    """

    source: Text
    provenance: Text
    setting: Text | None = None
    reconstruction: Text | None = None
    baseline_source: Text | None = None
    params_provenance: Text | None = None
    metric: Literal["top1", "top5"] = "top1"
    baseline: Percent | None = None
    pruned: Percent | None = None
    delta: Points | None = None
    better_than_baseline: Yes | None = None
    no_accuracy_loss: Yes | None = None
    from_error: Yes | None = None
    ambiguous: Yes | None = None
    params_drop: Percent | None = None
    params_drop_min: Percent | None = None
    params_drop_max: Percent | None = None
    macs_drop: Percent | None = None
    macs_drop_min: Percent | None = None
    macs_drop_max: Percent | None = None
    params_ratio: Ratio | None = None                       # from here on, but for `derived`, shown as they are
    params_ratio_min: Ratio | None = None
    params_ratio_max: Ratio | None = None
    macs_ratio: Ratio | None = None
    macs_ratio_min: Ratio | None = None
    macs_ratio_max: Ratio | None = None
    params_kept: Percent | None = None
    macs_kept: Percent | None = None
    params_k: Positive | None = None
    params_m: Positive | None = None
    macs_m: Positive | None = None
    macs_g: Positive | None = None
    flops_b: Positive | None = None
    baseline_params_k: Positive | None = None
    baseline_params_m: Positive | None = None
    baseline_macs_m: Positive | None = None
    baseline_macs_g: Positive | None = None
    baseline_flops_b: Positive | None = None
    reference: Positive | None = None
    filters_drop: Positive | None = None
    weight_sparsity: Positive | None = None
    memory_ratio: Positive | None = None
    speedup: Positive | None = None
    pruned_before_ft: Positive | None = None
    derived: list[Text] = []                                # fields computed from other numbers of the source

    def also(self) -> dict[str, float]:
        """What is shown as it is, beside no number of ours."""
        names = list(Claim.model_fields)
        return {name: value for name in names[names.index("params_ratio"):-1]
                if (value := getattr(self, name)) is not None}

    @property
    def step(self) -> float | None:
        """Pruned minus baseline, as stated or from the two accuracies."""
        if self.delta is not None or self.pruned is None or self.baseline is None:
            return self.delta
        return round(self.pruned - self.baseline, 6)

    @model_validator(mode="after")
    def _drops(self) -> Self:
        """Ratios and kept shares become drops, listed under `derived`."""
        for name in self.derived:
            value = getattr(self, name, None) if name in Claim.model_fields else None
            if not isinstance(value, int | float) or value is True:
                raise ValueError(f"derived names {name!r}, which is no number of the claim")
        for what in ("params", "macs"):
            drops = {f"{what}_drop{end}": 100 * (1 - 1 / ratio) for end in ENDS
                     if (ratio := getattr(self, f"{what}_ratio{end}")) is not None}
            if (kept := getattr(self, f"{what}_kept")) is not None:
                drops[f"{what}_drop"] = 100 - kept
            for name, drop in drops.items():
                said = getattr(self, name)
                if said is None:
                    setattr(self, name, round(drop, 4))
                    self.derived.append(name)
                elif name in self.derived and abs(said - drop) > 0.1:
                    raise ValueError(f"{name} {said:g} is not the {drop:.2f} of its ratio or kept share")
            exact, least, most = (getattr(self, f"{what}_drop{end}") for end in ENDS)
            if exact is not None and (least, most) != (None, None):
                raise ValueError(f"{what}_drop contradicts its own bound: give {what}_drop, or _min and _max")
            if least is not None and most is not None and least > most:
                raise ValueError(f"{what}_drop_min {least:g} contradicts {what}_drop_max {most:g}")
        return self

    @model_validator(mode="after")
    def _accuracies(self) -> Self:
        if self.delta is not None and self.pruned is not None and self.baseline is not None \
                and round(abs(self.delta - (step := self.pruned - self.baseline)), 6) > 0.015:
            raise ValueError(f"delta {self.delta:g} contradicts pruned - baseline = {step:.2f}")
        if self.step is not None and (self.better_than_baseline and self.step <= 0
                                      or self.no_accuracy_loss and self.step < 0):
            raise ValueError(f"better_than_baseline or no_accuracy_loss contradicts a delta of {self.step:.2f}")
        held = ["pruned", "delta", "better_than_baseline", "no_accuracy_loss",
                *(f"{what}_drop{end}" for what in ("params", "macs") for end in ENDS)]
        if all(getattr(self, name) is None for name in held):
            raise ValueError(f"claim must state what a run can be held against, one of: {', '.join(held)}")
        return self


class Row(Model):
    """One experiments/<paper>/<name>.yaml: see results/rows.py."""

    id: Text                                                # <paper>/<name>, the record's `experiment`
    title: Line
    command: Annotated[Text, Field(pattern=r"^[^;&|`$<>\\\n!#]*$")]      # people paste it into a shell
    claim: Claim | None                                     # None: a row of our own
    choices: dict[str, Any]                                 # method -> l1, as in the defaults list
    config: dict[str, Any]                                  # what the file sets itself, flat

    @property
    def paper(self) -> str:
        return self.id.split("/")[0]


class Paper(Model):
    """What experiments/papers.yaml says of a folder."""

    title: Text | None = None
    authors: Text | None = None
    venue: Text | None = None
    arxiv: Text | None = None
    doi: Text | None = None
    note: Text | None = None
    reconstruction: Text | None = None                      # what of method or recipe had to be filled in
    compare: bool = False                                   # its rows are nets, on which methods stand side by side
    beside: list[Text] = []                                 # rows of other folders: ids or patterns (half/*-l1)
