"""A W&B workspace and report with the panels that these runs are compared by.

    python -m reprune dashboard [--project reprune] [--entity E]        # saves a workspace and a report
    python -m reprune dashboard --dry-run                               # prints what would be saved, needs no network
    python -m reprune dashboard --from-records                          # first makes W&B runs of results/runs/*.json

Their addresses are kept in <output-dir>/dashboard.json: the same command brings the same two up to date.
The panels read what logger=wandb logs. WANDB_MODE=offline with --from-records writes the runs to the disk instead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from reprune.errors import UserError
from reprune.files import write_json
from reprune.results.backfill import backfill
from reprune.results.rows import read_all
from reprune.schema import STAGES, Record

TITLE = "Pruned nets beside the claims of their papers"
ABOUT = """\
One W&B run is one record, its id the record's key: `python -m reprune show KEY` explains it and prints the command that
repeats it. Accuracy is top-1 in percent on the test set after the last epoch, a delta is pruned minus baseline in
points, drops are in percent of the unpruned net, and `claim/...` is what the paper states. Short runs are not
comparable with claims: the pages in `results/` keep them apart, these panels do not."""
COLUMNS = ["config:experiment.value", "config:method.value.name", "config:model.value.name",
           "config:dataset.value.name", "config:recipe.value.name", "config:seed.value",
           *(f"summary:{name}" for name in (
               "baseline/top1", "pruned/top1", "delta_top1", "claim/delta", "pruned/top1_before_recovery",
               "params_drop", "claim/params_drop", "macs_drop", "claim/macs_drop", "speedup",
               *(f"epochs/{stage}" for stage in STAGES), "claim/source", "commit", "started"))]
TIMED = ("baseline", "sparse", "prune", "recover", "measure")


def sections() -> dict[str, list]:
    """Title -> panels; the same for the workspace and the report."""
    import wandb_workspaces.reports.v2 as wr

    def scatter(title: str, x: str, y: str, **how: Any) -> Any:
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y), **how)

    def bars(title: str, *metrics: str) -> Any:
        return wr.BarPlot(title=title, metrics=list(metrics))

    found = {
        "Accuracy and cost": [
            scatter("Top-1 over MACs; the line is the best so far", "pruned/macs", "pruned/top1", running_ymax=True),
            scatter("Points lost over MACs removed, %", "macs_drop", "delta_top1"),
            scatter("Points lost over measured speed-up", "speedup", "delta_top1")],
        "Runs and claims": [
            bars("Delta of top-1: ours, the paper's", "delta_top1", "claim/delta"),
            bars("MACs removed, %: ours, the paper's", "macs_drop", "claim/macs_drop"),
            bars("Parameters removed, %: ours, the paper's", "params_drop", "claim/params_drop")]}
    for stage in STAGES:
        found[f"Curves: {stage}"] = [
            wr.LinePlot(title=f"{stage}: {title}", x="epoch", y=[f"{stage}/{metric}"]) for metric, title in (
                ("loss", "loss"), ("top1", "top-1 on training images"), ("val_top1", "top-1 on held-out images"))]
    found["Widths"] = [
        bars("Filters removed, %", "filters_drop"),
        wr.LinePlot(title="Filters left in every layer, %, from the input to the output", x="layer", y=["widths/kept"]),
        wr.LinePlot(title="Filters in every layer, before and after", x="layer", y=["widths/before", "widths/after"])]
    found["Time"] = [bars("Seconds per stage", *(f"seconds/{stage}" for stage in TIMED)),
                     bars("Seconds of a run", "seconds/total")]
    return found


def workspace(project: str, entity: str) -> Any:
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity, project=project, name=TITLE,
        sections=[ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections().items()],
        runset_settings=ws.RunsetSettings(pinned_columns=["run:displayName", *COLUMNS]),
        settings=ws.WorkspaceSettings(max_runs=100))


def report(project: str, entity: str, lookup: bool = True) -> Any:
    """lookup=False: without asking the server for the project."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list = [wr.MarkdownBlock(ABOUT)]
    for title, panels in sections().items():
        table = title == "Runs and claims"                        # the runs stand below these panels
        for place, panel in enumerate(panels):
            panel.layout = wr.Layout(x=8 * place, y=0, w=8, h=8)
        runs = wr.Runset(project=project, entity=entity if lookup else "", name="Runs",
                         visible_columns=["run:displayName", *COLUMNS], lock_columns=True)
        blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=panels, hide_run_sets=not table)]
    return wr.Report(project=project, entity=entity, title=TITLE, blocks=blocks, width="fluid",
                     description="Made by python -m reprune dashboard")


def specs(project: str, entity: str) -> dict[str, Any]:
    """What W&B is sent, as plain data; asks nobody."""
    return {name: json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
            for name, made in (("workspace", workspace(project, entity)), ("report", report(project, entity, False)))}


def login() -> None:
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        there = wandb.login(prompt=False, verify=False)
    except Exception as error:                                    # a malformed key, a service that does not start
        raise UserError(f"W&B: {' '.join(str(error).split())}") from error
    if not there:
        raise UserError("no W&B API key was found: type `wandb login` or set WANDB_API_KEY; without one there is "
                        "--dry-run, and WANDB_MODE=offline for --from-records")


def saved(made: Any, url: str | None, names: list[str]) -> str:
    """The address; that of an earlier time, where W&B still has it: what `names` say of it becomes as `made` has it."""
    if url:
        try:
            old = type(made).from_url(url)
        except Exception:                                         # gone, or not to be read any more: a new one
            return made.save().url
        for name in names:
            setattr(old, name, getattr(made, name))
        made = old
    return made.save().url


def save(project: str, entity: str | None, kept: Path) -> list[str]:
    """kept: JSON, {"entity/project": {"workspace": its address, ...}} -> lines to print"""
    import wandb

    try:
        api = wandb.Api(timeout=30)
        entity = entity or api.default_entity
        if project not in {p.name for p in api.projects(entity)}:
            api.create_project(project, entity)                   # a report looks its project up
        known: dict[str, dict] = {}
        with suppress(OSError, ValueError):                       # none yet, or damaged
            known = json.loads(kept.read_text("utf-8"))
        urls = known.setdefault(f"{entity}/{project}", {})
        for make, names in ((workspace, ["name", "sections", "runset_settings", "settings"]),
                            (report, ["title", "description", "blocks", "width"])):
            urls[make.__name__] = saved(make(project, entity), urls.get(make.__name__), names)
            write_json(kept, known)
        return [f"{name:9}  {url}" for name, url in urls.items()]
    except UserError:
        raise
    except Exception as error:                                    # W&B raises errors of many classes
        raise UserError(f"W&B: {' '.join(str(error).split()) or type(error).__name__}") from error


def checked(file: Path) -> dict:
    Record.read(file.read_bytes())
    return json.loads(file.read_text("utf-8"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reprune dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--project", default="reprune", help="of W&B (reprune, as conf/logger/wandb.yaml has it)")
    parser.add_argument("--entity", help="user or team (your default)")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="where records lie (results)")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where W&B keeps its files (outputs)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="print the workspace and the report as JSON; no network")
    how.add_argument("--from-records", action="store_true", help="first make a W&B run of every published record")
    args = parser.parse_args(argv)
    offline, errors = os.environ.get("WANDB_MODE", "online") != "online", []
    try:
        try:
            import wandb_workspaces  # noqa: F401
        except ImportError as error:
            raise UserError("needs wandb-workspaces, which is not installed: pip install -e '.[dashboard]'") from error
        if args.dry_run:
            print(json.dumps(specs(args.project, args.entity or ""), indent=1))
            return 0
        if offline and not args.from_records:
            raise UserError("WANDB_MODE is not online, and a workspace lives on the server: unset it, or use --dry-run")
        if not offline:
            login()
        if args.from_records:
            files = list(args.results_dir.glob("runs/*.json"))
            records = read_all(files, checked, args.results_dir, errors)
            if not files:
                raise UserError(f"no record in {args.results_dir}/runs")
            print(backfill(records, args.project, args.entity, args.output_dir))
        if not offline:
            print("\n".join(save(args.project, args.entity, args.output_dir / "dashboard.json")))
    except UserError as error:
        errors.append(str(error))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0
