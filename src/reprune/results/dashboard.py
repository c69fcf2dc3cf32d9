"""A W&B workspace and report with the panels that these runs are compared by.

Their addresses are kept in <output-dir>/dashboard.json: the same command brings the same two up to date.
The panels read what logger=wandb logs. WANDB_MODE=offline with --from-records writes the runs to the disk instead.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb

from reprune.errors import UserError
from reprune.files import write_json
from reprune.results.rows import read_all
from reprune.schema import STAGES, Record

TITLE = "Pruned nets beside the claims of their papers"
ABOUT = """\
One W&B run is one record, its id the record's key: `python -m reprune show KEY` explains it and prints the command that
repeats it. Accuracy is top-1 in percent on the test set after the last epoch, a delta is pruned minus baseline in
points, drops are in percent of the unpruned net, and `claim/...` is what the paper states. Short runs are not
comparable with claims: the pages in `results/` keep them apart, these panels do not."""
COLUMNS = ["run:displayName", "config:experiment.value", "config:method.value.name", "config:model.value.name",
           "config:dataset.value.name", "config:recipe.value.name", "config:seed.value",
           *(f"summary:{name}" for name in (
               "baseline/top1", "pruned/top1", "delta_top1", "claim/delta", "pruned/top1_before_recovery",
               "params_drop", "claim/params_drop", "macs_drop", "claim/macs_drop", "speedup",
               *(f"epochs/{stage}" for stage in STAGES), "claim/source", "commit", "started"))]
UPDATED = {"name", "sections", "runset_settings", "settings", "title", "description", "blocks", "width"}


def sections(wr: Any) -> dict[str, list]:
    """Title -> panels; the same for the workspace and the report. wr: wandb_workspaces.reports.v2"""
    bars, curve, dots, last = wr.BarPlot, wr.LinePlot, wr.ScatterPlot, wr.SummaryMetric
    return {
        "Accuracy and cost": [
            dots("Top-1 over MACs; line: the best so far", last("pruned/macs"), last("pruned/top1"), running_ymax=True),
            dots("Points lost over MACs removed, %", last("macs_drop"), last("delta_top1")),
            dots("Points lost over measured speed-up", last("speedup"), last("delta_top1"))],
        "Runs and claims": [                                      # the report lists the runs below these
            bars("Delta of top-1: ours, the paper's", ["delta_top1", "claim/delta"]),
            bars("MACs removed, %: ours, the paper's", ["macs_drop", "claim/macs_drop"]),
            bars("Parameters removed, %: ours, the paper's", ["params_drop", "claim/params_drop"])],
        **{f"Curves: {stage}": [curve(f"{stage}: {title}", "epoch", [f"{stage}/{name}"]) for name, title in (
            ("loss", "loss"), ("top1", "top-1 on training images"), ("val_top1", "top-1 on held-out images"))]
           for stage in STAGES},
        "Widths": [
            bars("Filters removed, %", ["filters_drop"]),
            curve("Filters left in every layer, %, from the input to the output", "layer", ["widths/kept"]),
            curve("Filters in every layer, before and after", "layer", ["widths/before", "widths/after"])],
        "Time": [bars("Seconds per stage", [f"seconds/{stage}" for stage in (*STAGES, "prune", "measure")]),
                 bars("Seconds of a run", ["seconds/total"])]}


def both(project: str, entity: str) -> dict[str, Any]:
    """The workspace and the report. Without an entity nobody is asked whether there is such a project."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    blocks: list = [wr.MarkdownBlock(ABOUT)]
    for title, panels in sections(wr).items():
        for place, panel in enumerate(panels):
            panel.layout = wr.Layout(x=8 * place, y=0, w=8, h=8)
        runs = wr.Runset(entity, project, "Runs", visible_columns=COLUMNS, lock_columns=True)
        blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=panels, hide_run_sets=title != "Runs and claims")]
    opened = [ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections(wr).items()]
    return {"workspace": ws.Workspace(entity, project, TITLE, opened, ws.WorkspaceSettings(max_runs=100),
                                      ws.RunsetSettings(pinned_columns=COLUMNS)),
            "report": wr.Report(project, entity, TITLE, "Made by python -m reprune dashboard", blocks, "fluid")}


def save(project: str, entity: str | None, kept: Path) -> None:
    """kept: JSON, {"entity/project": {"workspace": its address, ...}}"""
    api = wandb.Api(timeout=30)
    entity = entity or api.default_entity
    if project not in {p.name for p in api.projects(entity)}:
        api.create_project(project, entity)                       # a report looks its project up
    known: dict[str, dict] = {}
    with suppress(OSError, ValueError):                           # none yet, or damaged
        known = json.loads(kept.read_text("utf-8"))
    urls = known.setdefault(f"{entity}/{project}", {})
    for what, made in both(project, entity).items():
        with suppress(Exception):                                 # gone, or not to be read any more: a new one
            old = type(made).from_url(urls[what])
            for name in UPDATED.intersection(vars(made)):
                setattr(old, name, getattr(made, name))
            made = old
        urls[what] = made.save().url
        write_json(kept, known)
        print(f"{what:9}  {urls[what]}")


def checked(file: Path) -> dict:
    Record.read(content := file.read_bytes())
    return json.loads(content)


def backfill(records: list[dict], project: str, entity: str | None, folder: Path, offline: bool) -> None:
    """Each as a W&B run, its id the record's key: the same records again change nothing."""
    from reprune.runs.loggers import layers, names, numbers  # with torch

    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        for old in folder.glob(f"wandb/offline-run-*-{record['key']}*") if offline else ():
            shutil.rmtree(old)
        what = [record[name] for name in ("method", "model", "dataset", "recipe", "seed", "experiment")]
        run = wandb.init(
            project=project, entity=entity, id=record["key"], dir=str(folder), config=record["config"], **names(*what),
            mode="offline" if offline else "online", resume=None if offline else "allow", reinit="create_new",
            settings=wandb.Settings(                              # nothing of this machine
                silent=True, console="off", init_timeout=30, finish_timeout=30, finish_timeout_raises=True,
                disable_code=True, x_disable_machine_info=True, x_save_requirements=False))
        epochs = ({"epoch": epoch, **{f"{stage}/{name}": value for name, value in zip(means, values, strict=True)}}
                  for stage, means in record.get("curves", {}).items()          # records of earlier versions have none
                  for epoch, values in enumerate(zip(*means.values(), strict=True)))
        for step, row in enumerate(() if run.resumed else (*epochs, *layers(record))):         # else W&B has them
            run.log(row, step=step)
        run.summary.update(numbers(record))
        run.finish()
    done, place = f"{len(records)} run{'s' * (len(records) != 1)}", shlex.quote(str(folder / "wandb"))
    print(f"wrote {done}; upload with:  wandb sync {place}/offline-run-*" if offline
          else f"W&B has {done} of records in the project {project}")


def act(project: str, entity: str | None, results_dir: Path, output_dir: Path, dry_run: bool, from_records: bool,
        errors: list[str]) -> None:
    if dry_run:                                                   # what W&B is sent, as plain data
        print(json.dumps({name: json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
                          for name, made in both(project, "").items()}, indent=1))
        return
    offline = os.environ.get("WANDB_MODE", "online") != "online"
    if offline and not from_records:
        raise UserError("WANDB_MODE is not online, and a workspace lives on the server: unset it, or use --dry-run")
    wandb.setup(wandb.Settings(silent=True))
    if not offline and not wandb.login(prompt=False, verify=False):
        raise UserError("no W&B API key was found: type `wandb login` or set WANDB_API_KEY; without one there is "
                        "--dry-run, and WANDB_MODE=offline for --from-records")
    if from_records:
        records = read_all([*results_dir.glob("runs/*.json")], checked, results_dir, errors)
        if not records and not errors:
            raise UserError(f"no record in {results_dir}/runs")
        backfill(records, project, entity, output_dir, offline)
    if not offline:
        save(project, entity, output_dir / "dashboard.json")


def main(*options: Any) -> list[str]:
    """options: of `act`. -> what went wrong"""
    errors: list[str] = []
    try:
        act(*options, errors)
    except UserError as error:
        errors.append(str(error))
    except Exception as error:                                    # W&B raises errors of many classes
        then = ": pip install -e '.[dashboard]'" if isinstance(error, ImportError) else "; the same command goes on"
        errors.append(f"W&B: {' '.join(str(error).split()) or type(error).__name__}{then}")
    finally:
        wandb.teardown()                                          # its service writes the last lines now
    return errors
