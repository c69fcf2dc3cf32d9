"""One run explained: what it is, how to repeat it, what it measured, and beside what claim of a paper it stands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reprune.errors import UserError
from reprune.results.lines import averaged
from reprune.results.records import Run, read_record
from reprune.results.render.text import origin, points, stated
from reprune.results.rows import departures, flat, rows_of
from reprune.results.verdict import verdict
from reprune.runs.compose import Composer, composing
from reprune.runs.fingerprint import changed, fingerprint
from reprune.runs.store import key_of, plain
from reprune.runs.targets import foreign
from reprune.schema import STAGES, Claim, Record, Row

BAR = 32                                # characters of the widest layer
SECTIONS = {"full": "a run of the whole recipe", "own": "a row without a claim", "control": "a control of the row",
            "changed": "a changed run: something differs from what the row's file says, or it ran longer",
            "short": "a short run, fewer epochs or images than the paper's: not comparable with the claim"}


def find(given: str, output_dir: Path, results_dir: Path) -> Path:
    """The record that a key, the beginning of a key, a file or a folder means."""
    if (path := Path(given)).is_file() or (path := path / "record.json").is_file():
        return path
    there = {file.stem: file for file in results_dir.glob("runs/*.json")}
    there |= {file.parent.name: file for file in output_dir.glob("*/record.json")}
    found = sorted(key for key in there if key.startswith(given)) if given else []
    if len(found) == 1:
        return there[found[0]]
    places = f"{output_dir}/*/record.json and {results_dir}/runs/*.json"
    listed = [key[:max(8, len(given) + 1)] for key in found or sorted(there)]
    keys = ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")
    if found:
        raise UserError(f"{given!r} is the beginning of {len(found)} keys, give more digits: {keys}")
    raise UserError(f"{given!r} is no file and the beginning of no key; {places} hold {keys or 'no record'}")


def read(file: Path) -> Record:
    try:
        return read_record(file)
    except (UserError, OSError) as error:
        raise UserError(f"{file}: {error}") from error


def row_of(record: Record, root: Path) -> Row | None:
    """None: not of a row, or the row is gone."""
    return next(iter(rows_of(root, [record.experiment] if record.experiment else [])), None)


# ---------------------------------------------------------------- parts of the page

def about(record: Record, row: Row | None) -> list[str]:
    """What it is, the claim, and what keeps the two apart."""
    lines = [f"[bold]{escape(f'{record.method} on {record.model} / {record.dataset}')}[/bold], recipe "
             f"{escape(record.recipe)}, seed {record.seed}, key {escape(record.key)}",
             f"baseline  {escape(record.baseline.source)}"]
    if record.experiment:
        lines.append(escape(f"row       {record.experiment}" + (f": {row.title}" if row else ", which is gone")))
    if record.control:
        lines.append(escape(f"control   {record.control}"))
    if row is None:
        return lines
    if claim := row.claim:
        said = [f"top-1 {stated(claim, 'accuracy')} (Δ {stated(claim, 'delta')})",
                f"{stated(claim, 'params_drop')} % of the parameters removed",
                f"{stated(claim, 'macs_drop')} % of the MACs removed"]
        lines += [f"claim     {'; '.join(said)}", f"from      {escape(origin(claim))}"]
        lines += [f"note      {escape(note)}" for note in (claim.setting, claim.reconstruction) if note]
    config = flat(record.config)
    line = averaged(row, [Run(record, "", {})], config)
    lines.append(f"this is   {SECTIONS[line.section]}")
    if line.section == "full":
        lines.append(f"verdict   {verdict(claim, 'full', line.values)}, of this run alone")
    wanted = {**row.config, **row.choices}
    for name in sorted(departures(row, line.values, config)) * (record.control is None):
        ours = line[name] if name in row.choices else config.get(name)
        lines.append(escape(f"differs   {name} is {json.dumps(ours)}, the row's file says {json.dumps(wanted[name])}"))
    return lines


def how_to_repeat(record: Record, root: Path) -> list[str]:
    commit, lines = record.env.git or "", ["", "[bold]To repeat it[/bold]"]
    code = f"the code it was made with: git checkout {commit.rstrip('+')}" if commit else "its commit is not known"
    code += ", and changes that were not committed" * commit.endswith("+")
    if strange := foreign(record.config, []):
        return [*lines, escape(f"no command is given: its config names {', '.join(strange)}, not of this project"),
                escape(code)]
    if record.overrides is None:
        return [*lines, escape("it was not run from a command line; its record holds the whole config"), escape(code)]
    notes, weights = [], str(record.config["model"].get("weights") or "")
    if weights:
        name, _, digest = weights.partition(" sha256:")
        notes.append(f"model.weights: the file {name} whose sha256 begins with {digest}")
    try:
        with composing(root) as compose:
            key = key_here(record, compose)
        notes.append(f"verified: this command has the key {key}" if key == record.key else
                     f"not verified: this command has the key {key} here, not {record.key}")
    except UserError as error:
        notes.append(f"not verified: {error}")
    command = shlex.join(["python", "run.py", *record.overrides])
    return [*lines, escape(command), *(escape(f"  {note}") for note in [*notes, code])]


def key_here(record: Record, compose: Composer) -> str:
    """Of the run that the record's overrides make with the configs that are here, given the same weights and images.
    Nothing is imported or run. Raises UserError where they do not compose."""
    try:
        config = plain(compose(record.overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"it does not compose ({' '.join(str(error).split())})") from error
    if config["model"].get("weights"):
        config["model"]["weights"] = record.config["model"].get("weights")
    if images := record.config["dataset"].get("content"):
        config["dataset"]["content"] = images
    return key_of(config)


def numbers(record: Record, claim: Claim | None) -> Table:
    base, pruned, at = record.baseline, record.pruned, record.latency
    table = Table("", "baseline", "pruned", "change", *["claim"] * (claim is not None), caption_justify="left",
                  caption=escape(f"latency of a batch of {at.batch_size:g}, {at.device}, {at.threads:g} threads"))
    for column in table.columns[1:]:
        column.justify = "right"
    said = {name: f"{text} %" if (text := stated(claim, name)) != "–" and name != "delta" else text
            for name in ("delta", "params_drop", "macs_drop")} if claim else {}

    def add(*cells: str, beside: str = "") -> None:
        table.add_row(*cells, *[said.get(beside, "")] * (claim is not None))

    add("top-1 %, last epoch", f"{base.top1:.2f}", f"{pruned.top1:.2f}",
        points(pruned.top1 - base.top1), beside="delta")
    if record.sparse is not None:
        add("  after sparse training", "", f"{record.sparse.top1:.2f}", points(record.sparse.top1 - base.top1))
    for name, what in (("top1_before_recovery", "before recovery"), ("top1_best", "best epoch on test"),
                       ("val_top1", "on held-out images")):
        if (value := getattr(pruned, name)) is not None:
            add(f"  {what}", "", f"{value:.2f}", "")
    for name, key in (("parameters", "params"), ("MACs", "macs")):
        before, after = getattr(base, key), getattr(pruned, f"{key}_mean", None) or getattr(pruned, key)
        drop = 100 * (1 - after / before)
        add(name, f"{before:,.0f}", f"{after:,.0f}", f"{drop:.1f} % removed", beside=f"{key}_drop")
    add("latency, ms", f"{base.latency_ms:.2f}", f"{pruned.latency_ms:.2f}",
        f"{base.latency_ms / pruned.latency_ms:.2f}x faster")
    return table


def stages(record: Record) -> Table:
    seconds = record.seconds
    table = Table("stage", "epochs", "paper's epochs", "seconds")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in dict.fromkeys([*STAGES[:2], *seconds, STAGES[2]]):
        ran, theirs = getattr(record.epochs, name, None), getattr(record.paper_epochs, name, None)
        if ran or theirs or seconds.get(name):
            table.add_row(escape(name), *("" if value is None else str(value) for value in (ran, theirs)),
                          f"{seconds[name]:.1f}" if name in seconds else "")
    return table


def picture(widths: dict[str, list[int]]) -> list[str]:
    """A line for every layer that lost filters: those it keeps, and those that went."""
    if not widths:
        return []
    cut = {name: w for name, w in widths.items() if w[0] != w[1]}
    most, room = max(w[0] for w in widths.values()), max(map(len, cut), default=0)
    lines = ["", f"[bold]Filters[/bold]  {len(cut)} of {len(widths)} layers are narrower"]
    for name, (before, after) in cut.items():
        full, kept = (max(1, round(BAR * n / most)) for n in (before, after))
        lines.append(f"{escape(name):{room}}  {before:4} → {after:<4} {'█' * kept}{'░' * (full - kept)}")
    return lines


def environment(record: Record) -> list[str]:
    env = {name: value for name, value in record.env if value is not None}
    device = " ".join(str(env.pop(name)) for name in ("devices", "device", "device_name", "threads") if name in env)
    said = [f"{name} {value}" for name, value in env.items() if name != "git"]
    parts = changed(record.code, fingerprint(record.config))
    return ["", f"[bold]Made with[/bold]  commit {record.env.git or 'unknown'}, started {escape(record.started)}",
            escape(f"{', '.join(said)}; {device} threads"), *[f"its code is not today's ({parts})"] * bool(parts)]


def show(record: Record, file: Path, root: Path, console: Console) -> None:
    def say(lines: list[str]) -> None:
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True)

    row = row_of(record, root)
    say(about(record, row))
    say(how_to_repeat(record, root))
    for table in (numbers(record, row.claim if row else None), stages(record)):
        console.print()
        console.print(table)
    say(picture(record.widths))
    say(environment(record))
    net = file.parent / "net.safetensors"
    say([f"record    {escape(str(file))}", *[f"net       {escape(str(net))}   (reprune.load)"] * net.is_file()])


def main(run: str, output_dir: Path, results_dir: Path) -> None:
    file = find(run, output_dir, results_dir)
    show(read(file), file, Path(), Console())
