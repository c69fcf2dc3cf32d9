"""What a run leaves behind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from reprune.schema.kinds import GROUPS, Count, Filters, Line, Model, Natural, Percent, Positive, Text


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
    val_top1: Percent | None = None                         # on held-out images


class Sparse(Part):
    top1: Percent                                           # after sparse training, before anything is removed
    val_top1: Percent | None = None                         # on held-out images


class Pruned(Net):
    macs_mean: Positive | None = None                       # of a dynamic net, over the test images; macs: all it has
    top1_best: Percent | None = None                        # of all epochs of recovery
    top1_before_recovery: Percent | None = None
    val_top1: Percent | None = None                         # on held-out images
    density: Percent | None = None                          # parameters that are not zero, where weights are masked
    bytes: Positive | None = None                           # of the net's coded file, where the method writes one
    bits: Positive | None = None                            # of that file, for each parameter of the unpruned net
    bytes_dense: Positive | None = None                     # of the unpruned net as safetensors

    @property
    def params_left(self) -> float:
        """Those that are there and not zero."""
        return self.params if self.density is None else self.params * self.density / 100


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
    device: Line | None = None
    threads: Count | None = None


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
    sparse: Sparse | None = None                            # where the method trains sparse
    pruned: Pruned
    latency: Latency
    left_out: Count | None = None                           # images that could not be read, of those that were tried
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
