"""One run explained: what it is, how to repeat it, what it measured, and beside what claim of a paper it stands.

    python -m reprune show KEY|FILE [--output-dir outputs] [--results-dir results]

KEY: the first digits are enough (tables show eight). FILE: a record, or the folder of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from yaml import YAMLError

from reprune.errors import UserError
from reprune.results.lines import section
from reprune.results.repeat import Repeater
from reprune.results.rows import (
    GROUPS,
    RECORD,
    STAGES,
    Row,
    departures,
    flat,
    must,
    must_be_finished,
    points,
    read_row,
    stated,
)
from reprune.results.verdict import verdict

BAR = 32                                # characters of the widest layer
SECTIONS = {"full": "a run of the whole recipe", "own": "a row without a claim",
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


def read(file: Path) -> dict:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        must_be_finished(record)
        must(record, {name: kind for name, kind in RECORD.items() if name != "experiment"})     # only of rows
        must(record, {"seconds": "mapping", "widths": "mapping", "config.model": "mapping"})
    except (UserError, OSError, ValueError) as error:
        kind = "" if isinstance(error, UserError) else "cannot be read as a record: "
        raise UserError(f"{file}: {kind}{error}") from error
    return record


def row_of(record: dict, root: Path) -> Row | None:
    file = root / "experiments" / f"{record.get('experiment')}.yaml"
    try:
        return read_row(file) if file.is_file() else None
    except (UserError, OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from error


def beside_claim(record: dict, row: Row) -> tuple[str, str]:
    """-> section of the tables, verdict; of this run alone, whatever other seeds say."""
    base, pruned, paper = record["baseline"], record["pruned"], record["paper_epochs"]
    config, recover = record["config"], record["config"]["recipe"].get("recover") or {}
    ours = {"paper_known": paper is not None, "images": config["dataset"].get("limit"), "source": base["source"],
            "last_epochs": recover.get("epochs"), **{group: record[group] for group in GROUPS},
            **{f"epochs.{stage}": record["epochs"][stage] for stage in STAGES},
            **{f"paper.{stage}": (paper or {}).get(stage) for stage in STAGES},
            "seeds": 1, "delta": pruned["top1"] - base["top1"], "delta_std": None, "pruned_top1": pruned["top1"],
            **{f"{what}_drop": 100 * (1 - pruned[what] / base[what]) for what in ("params", "macs")}}
    where = section(row, ours, flat(config))
    return where, verdict(row.claim, where, ours)


# ---------------------------------------------------------------- parts of the page

def about(record: dict, row: Row | None) -> list[str]:
    """What it is, the claim, and what keeps the two apart."""
    lines = [f"[bold]{record['method']} on {record['model']} / {record['dataset']}[/bold], recipe {record['recipe']}, "
             f"seed {record['seed']}, key {record['key']}", f"baseline  {escape(record['baseline']['source'])}"]
    if record.get("experiment"):
        lines.append(f"row       {record['experiment']}" + (f": {escape(row.title)}" if row else ", which is gone"))
    if row is None:
        return lines
    if claim := row.claim:
        said = [f"top-1 {stated(claim, 'accuracy')} (Δ {stated(claim, 'delta')})",
                f"{stated(claim, 'params_drop')} % of the parameters removed",
                f"{stated(claim, 'macs_drop')} % of the MACs removed"]
        origin = claim["source"] + f" ({claim['provenance']})" * (claim["provenance"] != claim["source"])
        lines += [f"claim     {'; '.join(said)}", f"from      {escape(origin)}"]
        lines += [f"note      {escape(claim[name])}" for name in ("setting", "reconstruction") if name in claim]
    where, judged = beside_claim(record, row)
    lines += [f"this is   {SECTIONS[where]}", *[f"verdict   {judged}"] * (where == "full")]
    config, wanted = flat(record["config"]), {**row.config, **row.choices}
    for name in sorted(departures(row, record, config)):
        ours = record[name] if name in row.choices else config.get(name)
        lines.append(escape(f"differs   {name} is {json.dumps(ours)}, the row's file says {json.dumps(wanted[name])}"))
    return lines


def how_to_repeat(record: dict, root: Path) -> list[str]:
    commit, lines = str(record["env"].get("git") or ""), ["", "[bold]To repeat it[/bold]"]
    code = f"the code it was made with: git checkout {commit.rstrip('+')}" if commit else "its commit is not known"
    code += ", and changes that were not committed" * commit.endswith("+")
    try:
        repeat = Repeater(root)(record)
    except UserError as error:
        return [*lines, *map(escape, (f"the command cannot be worked out: {error}", code))]
    verdict = (f"verified: this command has the key {repeat.key}" if repeat.exact else
               f"not verified: this command has the key {repeat.key}, not {repeat.wanted}")
    return [*lines, escape(repeat.command), *(escape(f"  {note}") for note in [*repeat.notes, verdict, code])]


def numbers(record: dict, claim: dict | None) -> Table:
    base, pruned, at = record["baseline"], record["pruned"], record["latency"]
    table = Table("", "baseline", "pruned", "change", *["claim"] * (claim is not None), caption_justify="left",
                  caption=f"latency of a batch of {at['batch_size']}, {at['device']}, {at['threads']} threads")
    for column in table.columns[1:]:
        column.justify = "right"
    said = {name: f"{text} %" if (text := stated(claim, name)) != "–" and name != "delta" else text
            for name in ("delta", "params_drop", "macs_drop")} if claim else {}

    def add(*cells: str, beside: str = "") -> None:
        table.add_row(*cells, *[said.get(beside, "")] * (claim is not None))

    add("top-1 %, last epoch", f"{base['top1']:.2f}", f"{pruned['top1']:.2f}",
        points(pruned["top1"] - base["top1"]), beside="delta")
    for name, what in (("top1_before_recovery", "before recovery"), ("top1_best", "best epoch on test"),
                       ("val_top1", "on held-out images")):
        if pruned.get(name) is not None:
            add(f"  {what}", "", f"{pruned[name]:.2f}", "")
    for name, key in (("parameters", "params"), ("MACs", "macs")):
        drop = 100 * (1 - pruned[key] / base[key])
        add(name, f"{base[key]:,}", f"{pruned[key]:,}", f"{drop:.1f} % removed", beside=f"{key}_drop")
    add("latency, ms", f"{base['latency_ms']:.2f}", f"{pruned['latency_ms']:.2f}",
        f"{base['latency_ms'] / pruned['latency_ms']:.2f}x faster")
    return table


def stages(record: dict) -> Table:
    seconds, paper = record["seconds"], record["paper_epochs"] or {}
    table = Table("stage", "epochs", "paper's epochs", "seconds")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in dict.fromkeys([*STAGES[:2], *seconds, STAGES[2]]):
        ran, theirs = record["epochs"].get(name), paper.get(name)
        if ran or theirs or seconds.get(name):
            table.add_row(name, *("" if value is None else str(value) for value in (ran, theirs)),
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


def environment(record: dict) -> list[str]:
    env = dict(record["env"])
    device = " ".join(str(env.pop(name)) for name in ("devices", "device", "device_name", "threads") if name in env)
    said = [f"{name} {value}" for name, value in env.items() if name != "git"]
    return ["", f"[bold]Made with[/bold]  commit {env.get('git') or 'unknown'}, started {record['started']}",
            f"{', '.join(said)}; {device} threads"]


def show(record: dict, file: Path, root: Path, console: Console) -> None:
    def say(lines: list[str]) -> None:
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True)

    row = row_of(record, root)
    say(about(record, row))
    say(how_to_repeat(record, root))
    for table in (numbers(record, row.claim if row else None), stages(record)):
        console.print()
        console.print(table)
    say(picture(record["widths"]))
    say(environment(record))
    net = file.parent / "net.safetensors"
    say([f"record    {escape(str(file))}", *[f"net       {escape(str(net))}   (reprune.load)"] * net.is_file()])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reprune show", description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", metavar="KEY|FILE", help="the first digits of a key, a record, or the folder of a run")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where runs lie (outputs)")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="where published ones lie (results)")
    args = parser.parse_args(argv)
    try:
        file = find(args.run, args.output_dir, args.results_dir)
        show(read(file), file, Path(os.environ.get("REPRUNE_ROOT", ".")), Console())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
