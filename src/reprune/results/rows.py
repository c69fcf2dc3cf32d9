"""What tables are made of: rows (experiments/<paper>/*.yaml) and records (results/runs/*.json), checked and joined."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reprune.errors import UserError
from reprune.runs.store import NEUTRAL, NOT_IN_KEY

SCHEMA = 1                                                  # of records; read here without all that a run needs
GROUPS = ("model", "dataset", "method", "recipe")           # config groups whose choice a record names
STAGES = ("baseline", "sparse", "recover")
ENDS = ("", "_min", "_max")                                 # exactly, more than, up to
DROPS, RATIOS = ([f"{what}_{form}{end}" for what in ("params", "macs") for end in ENDS] for form in ("drop", "ratio"))
KEPT = ["params_kept", "macs_kept"]
SIZES = ["params_k", "params_m", "macs_m", "macs_g", "flops_b"]
ALSO = [*RATIOS, *KEPT, *SIZES, *(f"baseline_{size}" for size in SIZES), "reference", "filters_drop", "weight_sparsity",
        "memory_ratio", "speedup", "pruned_before_ft"]      # shown as they are, beside no number of ours
CLAIM = {
    **dict.fromkeys(["source", "provenance"], "text"),      # always; of the rest, what the paper happens to state
    **dict.fromkeys(["setting", "reconstruction", "baseline_source", "params_provenance"], "text"),
    "metric": "top1 or top5", "baseline": "percent", "pruned": "percent", "delta": "points",
    **dict.fromkeys(["better_than_baseline", "no_accuracy_loss", "from_error", "ambiguous"], "true"),
    **dict.fromkeys(ALSO, "positive"), **dict.fromkeys(DROPS + KEPT, "percent"),
    **dict.fromkeys(RATIOS, "1 or more"),                   # 8: eight times fewer
    "derived": "list of texts"}                             # fields computed from other numbers of the source
HELD = ["pruned", "delta", "better_than_baseline", "no_accuracy_loss", *DROPS]      # one of them, at least
ABOUT = {**dict.fromkeys(["title", "authors", "venue", "arxiv", "doi", "note", "reconstruction"], "text"),
         "beside": "list of texts"}                         # rows of other folders: ids or patterns (half/*-l1)
RECORD = {
    **dict.fromkeys(["key", "experiment", *GROUPS, "started", "baseline.source", "latency.device"], "text"),
    **dict.fromkeys(["config", *(f"config.{group}" for group in GROUPS), "config.trainer"], "mapping"),
    **{f"{net}.{name}": "positive" for net in ("baseline", "pruned") for name in ("params", "macs", "latency_ms")},
    **dict.fromkeys(["latency.batch_size", "latency.threads"], "positive"), "seed": "count",
    "baseline.top1": "percent", "pruned.top1": "percent", "pruned.top1_best": "percent or null",
    "pruned.top1_before_recovery": "percent or null", "group_norms": "lists of norms or null",
    "epochs": "counts", "paper_epochs": "counts or null", "env": "mapping", "code": "mapping or null"}


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KINDS = {"text": lambda v: isinstance(v, str) and v.strip() != "",
         "mapping": lambda v: isinstance(v, dict), "list": lambda v: isinstance(v, list),
         "list of texts": lambda v: isinstance(v, list) and all(KINDS["text"](item) for item in v),
         "true": lambda v: v is True, "top1 or top5": lambda v: v in ("top1", "top5"),
         "percent": lambda v: number(v) and 0 <= v <= 100, "points": lambda v: number(v) and -100 <= v <= 100,
         "positive": lambda v: number(v) and 0 < v < float("inf"),
         "1 or more": lambda v: number(v) and 1 <= v < float("inf"),
         "lists of norms": lambda v: isinstance(v, dict) and v != {} and all(
             isinstance(norms, list) and norms and all(number(n) and 0 <= n < float("inf") for n in norms)
             for norms in v.values()),
         "count": lambda v: number(v) and isinstance(v, int) and v >= 0,
         "counts": lambda v: isinstance(v, dict) and all(KINDS["count"](v.get(stage)) for stage in STAGES)}


def must(node: Any, fields: dict[str, str], prefix: str = "") -> None:
    """Raises UserError for the first field of `node` that is not of its kind."""
    for name, kind in fields.items():
        value = node
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not (KINDS[kind.removesuffix(" or null")](value) or (value is None and kind.endswith("or null"))):
            raise UserError(f"{prefix}{name} must be {kind}, not {value!r:.60}")


def optional(node: Any, fields: dict[str, str], prefix: str, required: tuple[str, ...] = ()) -> dict:
    """What a mapping gives of `fields` (null: not given), checked; an unknown field is an error."""
    if not isinstance(node, dict):
        raise UserError(f"{prefix} must be mapping, not {node!r:.60}")
    if unknown := sorted(set(map(str, node)) - set(fields)):
        raise UserError(f"{prefix}.{unknown[0]} is unknown, allowed: {', '.join(fields)}")
    given = {name: value for name, value in node.items() if value is not None}
    must(given, {name: kind for name, kind in fields.items() if name in given or name in required}, f"{prefix}.")
    return given


def read_claim(node: Any) -> dict:
    """What the paper states. Ratios and kept shares become drops, listed under `derived`.

    >>> read_claim({"params_ratio": 8, "source": "abstract", "provenance": "abstract"})["params_drop"]
    87.5
    """
    claim = optional(node, CLAIM, "claim", required=("source", "provenance"))
    claim["derived"] = list(claim.get("derived", []))
    if strange := [name for name in claim["derived"] if name not in claim or not number(claim[name])]:
        raise UserError(f"claim.derived names {strange[0]!r}, which is no number of the claim")
    for what in ("params", "macs"):
        drops = {f"{what}_drop{end}": 100 * (1 - 1 / claim[name]) for end in ENDS
                 if (name := f"{what}_ratio{end}") in claim}
        if (kept := claim.get(f"{what}_kept")) is not None:
            drops[f"{what}_drop"] = 100 - kept
        for name, drop in drops.items():
            if name in claim["derived"] and abs(claim[name] - drop) > 0.1:
                raise UserError(f"claim.{name} {claim[name]} is not the {drop:.2f} of its ratio or kept share")
            if name not in claim:
                claim |= {name: round(drop, 4), "derived": [*claim["derived"], name]}
        exact, least, most = (claim.get(f"{what}_drop{end}") for end in ENDS)
        if exact is not None and (least, most) != (None, None):
            raise UserError(f"claim.{what}_drop contradicts its own bound: give {what}_drop, or _min and _max")
        if least is not None and most is not None and least > most:
            raise UserError(f"claim.{what}_drop_min {least:g} contradicts {what}_drop_max {most:g}")
    step = claim["pruned"] - claim["baseline"] if "pruned" in claim and "baseline" in claim else None
    delta = claim.get("delta", step)
    if step is not None and round(abs(delta - step), 6) > 0.015:
        raise UserError(f"claim.delta {delta} contradicts pruned - baseline = {step:.2f}")
    if delta is not None and (("better_than_baseline" in claim and delta <= 0)
                              or ("no_accuracy_loss" in claim and delta < 0)):
        raise UserError(f"claim.better_than_baseline or no_accuracy_loss contradicts a delta of {delta:.2f}")
    if not any(name in claim for name in HELD):
        raise UserError(f"claim must state what a run can be held against, one of: {', '.join(HELD)}")
    return claim


def points(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"                  # + 0.0: no -0.00


def stated(claim: dict, what: str) -> str:
    """One cell of a table: `accuracy`, `delta`, `params_drop` or `macs_drop`, as far as the paper states it.

    >>> stated({"params_drop_min": 50, "derived": []}, "params_drop"), stated({"derived": []}, "macs_drop")
    ('> 50', '–')
    """
    def say(name: str, form: str) -> str:
        return "–" if name not in claim else f"{claim[name]:{form}}" + " †" * (name in claim["derived"])

    top5 = " (top-5)" * (claim.get("metric") == "top5")
    if what == "accuracy":
        both = [say(name, ".2f") for name in ("baseline", "pruned")]
        return "–" if both == ["–", "–"] else " → ".join(both) + top5
    if what == "delta":
        step = points(claim["pruned"] - claim["baseline"]) if "pruned" in claim and "baseline" in claim else None
        worded = "> 0" if "better_than_baseline" in claim else "≥ 0" if "no_accuracy_loss" in claim else None
        said = say("delta", "+.2f") if "delta" in claim else step or worded
        return said + top5 if said else "–"
    bounds = [sign + say(what + end, ".3g") for sign, end in (("> ", "_min"), ("≤ ", "_max")) if what + end in claim]
    return ", ".join(bounds) or say(what, ".1f")


@dataclass(frozen=True)
class Row:
    """One experiments/<paper>/<name>.yaml."""
    id: str                     # <paper>/<name>, the record's `experiment`
    title: str
    command: str
    claim: dict | None          # None: a row of our own
    choices: dict[str, str]     # method -> l1, as in the defaults list
    config: dict[str, Any]      # what the file sets itself, flat: method.allocation.macs -> 0.5


def read_yaml(file: Path) -> Any:
    """The same reading of YAML as Hydra's: a name that is given twice is an error."""
    return OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8") or "{}"))


def read_row(file: Path) -> Row:
    text, name, node = file.read_text(encoding="utf-8"), f"{file.parent.name}/{file.stem}", read_yaml(file)
    if not isinstance(node, dict):
        raise UserError("file must be a mapping")
    claim, defaults = node.pop("claim", None), node.pop("defaults", None) or []
    must({"defaults": defaults}, {"defaults": "list"})
    claim = None if claim is None else read_claim(claim)
    comment = [line.lstrip("# ") for line in takewhile(lambda s: s.startswith("#"), text.splitlines())
               if not line.startswith("# @")]
    title, python, rest = "\n".join(comment).partition("python run.py")
    command = python + rest.partition("\n")[0].rstrip() or f"python run.py experiments={name}"
    if f"experiments={name}" not in command.split():
        raise UserError(f"command {command!r} must name experiments={name}")
    choices = {group: choice for entry in defaults if isinstance(entry, dict) for key, choice in entry.items()
               if (group := str(key).removeprefix("override /")) in GROUPS}
    config = {k: v for k, v in flat(node, neutral={}).items() if "${" not in str(v)}
    return Row(name, " ".join(title.split()).rstrip("."), command, claim, choices, config)


def must_be_finished(record: Any) -> None:
    """Raises UserError for what is no record, or one of a run that has not ended."""
    schema, status = (record.get("schema"), record.get("status")) if isinstance(record, dict) else (None, None)
    if schema != SCHEMA or status != "done":
        raise UserError(f"schema must be {SCHEMA} and status 'done', not {schema!r:.20} and {status!r:.20}: not the "
                        "record of a finished run")


def read_record(file: Path) -> dict:
    record = json.loads(file.read_text(encoding="utf-8"))
    must_be_finished(record)
    must(record, RECORD)
    if record["key"] != file.stem:
        raise UserError(f"key {record['key']!r} must be the name of the file")
    return record


def read_about(papers: Any, rows: set[str], errors: list[str]) -> dict[str, dict]:
    """What papers.yaml says of each paper and of each folder of `rows` (ids), `beside` as ids.

    What is wrong becomes a line in `errors`.
    """
    papers = papers if isinstance(papers, dict) else {}
    about: dict[str, dict] = {}
    for paper in sorted({*map(str, papers), *(name.split("/")[0] for name in rows)}):
        try:
            if not isinstance(papers.get(paper), dict):
                raise UserError(f"{paper} must be a mapping with title, authors, venue")
            about[paper] = optional(papers[paper], ABOUT, paper)
            patterns = about[paper].get("beside", [])
            found = {p: {row for row in rows if row.split("/")[0] != paper and fnmatchcase(row, p)} for p in patterns}
            if lost := [p for p in patterns if not found[p]]:
                raise UserError(f"{paper}.beside {lost[0]!r} matches no row of another folder")
            about[paper]["beside"] = sorted(set().union(*found.values()))
        except UserError as error:
            errors.append(f"experiments/papers.yaml: {error}")
            about[paper] = {name: value for name, value in about.get(paper, {}).items() if name != "beside"}
    return about


def read_all(files: list[Path], read: Callable[[Path], Any], root: Path, errors: list[str]) -> list:
    """What `read` makes of each file; a bad file becomes one line in `errors`."""
    found = []
    for file in sorted(files):
        try:
            found.append(read(file))
        except (UserError, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
            kind = "" if isinstance(error, UserError) else "content cannot be read: "
            errors.append(f"{file.relative_to(root).as_posix()}: {kind}{' '.join(str(error).split())}")
    return found


LEFT_OUT = frozenset(("seed", *NOT_IN_KEY))


def flat(node: Any, prefix: str = "", neutral: dict[str, Any] = NEUTRAL) -> dict[str, Any]:
    """Nested mappings as {dotted name: value}, without what a result does not depend on, the seed, and the options
    whose value means what runs did before there were any: earlier records do not have them.

    >>> flat({"method": {"p": 1, "rates": {2: 0.5}, "allocation": {"multiple": 1}}, "seed": 3})
    {'method.p': 1, 'method.rates.2': 0.5}
    """
    if not isinstance(node, dict):
        return {} if node == neutral.get(prefix, ...) else {prefix: node}
    return {name: leaf for key, value in node.items() if (at := f"{prefix}.{key}" if prefix else str(key))
            not in LEFT_OUT for name, leaf in flat(value, at, neutral).items()}


def departures(row: Row, run: dict, config: dict) -> set[str]:
    """Names of what the row's file says and a run does otherwise; config: the run's, flat."""
    return ({group for group, choice in row.choices.items() if run[group] != choice}
            | {name for name, value in row.config.items() if config.get(name, NEUTRAL.get(name)) != value})


def row_ids(root: Path) -> set[str]:
    return {f"{file.parent.name}/{file.stem}" for file in root.glob("experiments/*/*.yaml")}


def read_rows(root: Path, errors: list[str]) -> tuple[list[Row], dict[str, dict]]:
    """-> rows, and what papers.yaml says of their folders"""
    rows = read_all([*root.glob("experiments/*/*.yaml")], read_row, root, errors)
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        same = first.setdefault((row.id.split("/")[0], row.title), row)
        if same is not row and row.claim and same.claim:
            errors.append(f"experiments/{row.id}.yaml: comment {row.title!r} is that of experiments/{same.id}.yaml "
                          "too: a claim stands in one file, and the first line says which row of the paper it is")
    if not rows:
        errors.append("experiments: no row, expected experiments/<paper>/<row>.yaml")
    papers = read_all([root / "experiments/papers.yaml"], read_yaml, root, errors)
    return rows, read_about(papers[0] if papers else None, row_ids(root), errors)
