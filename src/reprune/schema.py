"""What a record, a claim, a row and the description of a paper are: every field, its kind and its limits, said once.

Whoever reads such a file reads it by `Record.read`, `Claim.read`, ...: a typed object, or a UserError of one line that
names the field, what is allowed and what was given. The same in JSON Schema, for others: results/record.schema.json.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from reprune.errors import UserError

SCHEMA = 1                                                  # of records
GROUPS = ("model", "dataset", "method", "recipe")           # config groups whose choice a record names
STAGES = ("baseline", "sparse", "recover")
ENDS = ("", "_min", "_max")                                 # exactly, more than, up to

PLAIN = r"[^\x00-\x08\x0b-\x1f\x7f-\x9f]*"                 # a terminal acts on control characters
Line = Annotated[str, Field(pattern=f"^{PLAIN}$")]
Text = Annotated[str, Field(min_length=1, pattern=rf"^{PLAIN}[^\s\x00-\x1f\x7f-\x9f]{PLAIN}$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Natural = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Points = Annotated[float, Field(ge=-100, le=100)]
Ratio = Annotated[float, Field(ge=1)]                       # 8: eight times fewer
Filters = Annotated[int, Field(ge=0, le=10**6)]
Yes = Literal[True]


class Model(BaseModel):
    """No number is a text, true or infinite; a field that is not known is a mistake."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    @classmethod
    def read(cls, content: Any, at: str = "") -> Self:
        """content: bytes of JSON, or plain data; at: what stands before the names of fields in an error."""
        try:
            return cls.model_validate_json(content) if isinstance(content, bytes) else cls.model_validate(content)
        except ValidationError as error:
            raise UserError(cls._line(error.errors(include_url=False)[0], at)) from None

    @classmethod
    def _line(cls, error: dict[str, Any], at: str) -> str:
        name = ".".join([at] * bool(at) + [str(part) for part in error["loc"]]) or "content"
        if error["type"] == "value_error":                  # of our own: it names its field
            return f"{at}{'.' * bool(at)}{error['ctx']['error']}"
        if error["type"] == "extra_forbidden":
            return f"{name} is unknown, allowed: {', '.join(cls.model_fields)}"
        given = "" if error["type"] == "missing" else f", not {error['input']!r:.60}"
        return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}{given}"


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
    beside: list[Text] = []                                 # rows of other folders: ids or patterns (half/*-l1)


class Part(Model):
    """Of a record: later versions may know more fields."""

    model_config = ConfigDict(extra="ignore")


class Net(Part):
    top1: Percent                                           # on the test set, after the last epoch
    params: Positive
    macs: Positive                                          # multiply-adds for one image
    latency_ms: Positive                                    # of a batch
    peak_memory_mib: Natural | None = None                  # of activations


class Unpruned(Net):
    source: Text                                            # "trained here", or a file and its hash


class Pruned(Net):
    top1_best: Percent | None = None                        # of all epochs of recovery
    top1_before_recovery: Percent | None = None
    val_top1: Percent | None = None                         # on held-out images


class Latency(Part):
    batch_size: Positive
    threads: Positive
    device: Text


class Epochs(Part):
    baseline: Count
    sparse: Count
    recover: Count


class Environment(Part):
    model_config = ConfigDict(extra="allow")

    git: Annotated[str, Field(pattern=r"^[0-9a-f]{4,40}\+?$")] | None = None      # +: files differed from the commit
    torch: Line | None = None


class Record(Part):
    """results/runs/<key>.json or <output_dir>/<key>/record.json: one finished run."""

    version: Literal[1] = Field(alias="schema")
    status: Literal["done"]
    key: Text                                               # hash of what determines the result
    experiment: Text | None                                 # the row it is a run of
    control: Text | None = None                             # the control of that row it is, if it is one
    overrides: list[Line] | None = None                      # of run.py, as typed; None: not run from a command line
    method: Text
    model: Text
    dataset: Text
    recipe: Text
    seed: Count
    config: dict[str, Any]                                  # resolved, whole
    baseline: Unpruned
    pruned: Pruned
    latency: Latency
    widths: dict[Line, Annotated[list[Filters], Field(min_length=2, max_length=2)]] = {}   # layer: [before, after]
    epochs: Epochs
    paper_epochs: Epochs | None                             # of the paper's recipe, where it is known
    curves: dict[Line, dict[Line, list[float]]] = {}          # stage: {name: a number per epoch}
    group_norms: Annotated[dict[Line, Annotated[list[Natural], Field(min_length=1)]], Field(min_length=1)] | None = None
    seconds: dict[Line, Natural] = {}                        # of each stage
    code: dict[Line, Line] | None = None                      # fingerprints of what it was made with
    env: Environment
    started: Text

    @field_validator("config")
    @classmethod
    def _groups(cls, config: dict[str, Any]) -> dict[str, Any]:
        for group in (*GROUPS, "trainer"):
            if not isinstance(config.get(group), dict):
                raise ValueError(f"config.{group} must be a mapping, not {config.get(group)!r:.60}")
        return config
