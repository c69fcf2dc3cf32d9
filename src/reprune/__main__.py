"""The command `reprune`. What a command needs is imported when it is asked for: torch takes seconds."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

import reprune
from reprune.errors import UserError, ended

app = typer.Typer(
    help=reprune.__doc__.split("\n")[0], no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
Root = Annotated[Path, typer.Option(help="folder of results/, and of experiments/ if it has its own")]
Check = Annotated[bool, typer.Option("--check", help="write nothing; exit 1 if a file is not up to date")]
Outputs = Annotated[Path, typer.Option(help="where runs lie")]
Results = Annotated[Path, typer.Option(help="where published records lie")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE] ...", help="of reprune run")]
Multirun = Annotated[bool, typer.Option("-m", "--multirun", hidden=True)]               # as typed for the sweep


@app.command(context_settings=PASS_ON)
def run(ctx: typer.Context) -> None:
    """Train, prune and measure a net; with -m, a sweep. run --help lists all there is."""
    from reprune.sweeps.run import run

    run(ctx.args)


@app.command()
def status(overrides: Overrides = None, all: Annotated[bool, typer.Option("--all", help="list every cell")] = False,
           multirun: Multirun = False) -> int:
    """Where a sweep stands: done, running, failed, cut off, missing. Runs nothing.

    Takes the overrides of the sweep, or of one run: its key, its baseline's key, its state. Of a long sweep it lists
    what is running, cut off, superseded (by today's code) or failed. Exit status 1: a cell has failed.
    """
    from reprune.sweeps.status import FAILED, cells, show

    if found := cells(overrides or [], Path()):
        show(found, all)
    return int(any(cell.state == FAILED for cell in found))


@app.command()
def compare(of: Annotated[list[str] | None, typer.Argument(metavar="[FOLDER | KEY=VALUE ...]", help=(
                "a folder of runs, or the overrides of a sweep; outputs/ if not given"))] = None,
            md: Annotated[bool, typer.Option("--md", help="as Markdown")] = False,
            csv: Annotated[bool, typer.Option("--csv", help="as CSV, with all that is known")] = False,
            multirun: Multirun = False) -> int:
    """Finished runs side by side: accuracy over the seeds, delta, MACs, params, speed-up."""
    from reprune.results.compare import lines_of, records_in, told
    from reprune.results.tables import as_csv

    given, errors = of or ["outputs"], []
    if Path(given[0]).is_dir() or given == ["outputs"]:
        files = records_in(Path(given[0]))
    else:
        from reprune.sweeps.run import records_of

        files = records_of(given)
    if not files:
        raise UserError(f"nothing has finished of {' '.join(given)}")
    print(as_csv(lines_of(files, errors)).rstrip() if csv else told(files, errors, "github" if md else "simple"))
    return ended(errors)


@app.command()
def show(run: Annotated[str, typer.Argument(metavar="KEY|FILE", help=(
             "the first digits of a key, a record, or the folder of a run"))],
         output_dir: Outputs = Path("outputs"), results_dir: Results = Path("results")) -> None:
    """One run explained: what it is, how to repeat it, what it measured, the claim beside it."""
    from reprune.results.show import main

    main(run, output_dir, results_dir)


@app.command()
def weight(row: Annotated[str, typer.Argument(metavar="PAPER/ROW")], root: Root = Path()) -> None:
    """The weight of a row's penalty, by rule: the largest whose sparse net loses at most 0.3 points, held out."""
    from reprune.results.weight import main

    main(row, root)


@app.command()
def tables(root: Root = Path(), check: Check = False) -> int:
    """Write results/<paper>.md, README.md, results.csv, latex/: rows and claims beside records."""
    from reprune.results.tables import tables, write

    return ended(write(tables, root, check))


@app.command()
def report(root: Root = Path(), check: Check = False) -> int:
    """Write results/index.html: all results on one page to search, sort and plot."""
    from reprune.results.tables import report, write

    return ended(write(report, root, check))


@app.command()
def figures(root: Root = Path(), check: Check = False) -> int:
    """Write results/figures/*.svg, and remove those that show nothing any more."""
    from reprune.results.figures import write

    return ended(write(root, check))


@app.command()
def export(checkpoint: Annotated[Path, typer.Argument(help="net.safetensors of a run, or of reprune.save")],
           onnx: Annotated[Path | None, typer.Option(help="write ONNX; times it in onnxruntime, too")] = None,
           torchscript: Annotated[Path | None, typer.Option(help="write TorchScript")] = None,
           state_dict: Annotated[Path | None, typer.Option(help="write a state_dict, and its widths beside it")] = None,
           batch: Annotated[int, typer.Option(help="images for the check and the times")] = 64,
           builder: Annotated[str | None, typer.Option(help="mypkg.nets.Net, of a net of your own")] = None) -> None:
    """A pruned net for other programs: give one of --onnx, --torchscript, --state-dict."""
    from reprune.models.export import main

    main(checkpoint, {"onnx": onnx, "torchscript": torchscript, "state-dict": state_dict}, batch, builder)


@app.command()
def dashboard(project: Annotated[str, typer.Option(help="of W&B")] = "reprune",
              entity: Annotated[str | None, typer.Option(help="user or team; your default if not given")] = None,
              results_dir: Results = Path("results"), output_dir: Outputs = Path("outputs"),
              dry_run: Annotated[bool, typer.Option("--dry-run", help="print both as JSON; no network")] = False,
              from_records: Annotated[bool, typer.Option("--from-records", help=(
                  "first make a W&B run of every published record"))] = False) -> int:
    """Save a W&B workspace and report over the runs that logger=wandb logs."""
    if dry_run and from_records:
        raise typer.BadParameter("--dry-run and --from-records exclude one another")
    from reprune.results.dashboard import main

    return ended(main(project, entity, results_dir, output_dir, dry_run, from_records))


@app.command()
def campaign(ctx: typer.Context, minutes: Annotated[float, typer.Option(help="from start to end, saving included")],
             overrides: Overrides = None,
             rows: Annotated[str, typer.Option(help="ids or patterns, with commas")] = "*",
             seeds: Annotated[str, typer.Option(help="with commas")] = "0,1,2",
             controls: Annotated[str, typer.Option(help="of rows with a claim, with commas; '': none")] = (
                 "random,l1,scratch"),
             at_once: Annotated[int | None, typer.Option(min=1, help=(
                 "runs side by side; if not given one per core, or one on GPUs"))] = None,
             dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would run")] = False,
             out: Annotated[Path | None, typer.Option(help=(
                 "for records and logs (records.tar.000), what is unfinished and nets (state.tar.000)"))] = None,
             limit: Annotated[float, typer.Option(help="MiB of state in --out")] = 200,
             part: Annotated[float, typer.Option(help="MiB of one piece of it")] = 60) -> int:
    """Run rows that have not run, in order of value, for so many minutes; the next time goes on.

    Every run is a `reprune run experiments=ROW seed=N`, with the overrides that are given; its output is in
    <output_dir>/campaign/<key>.log. Towards the end, or at Ctrl-C, runs are told to save and stop. A run that fails
    does not stop the others, but makes the exit status 1.

    First goes on what is half done; then come, one seed each, claims at the paper's whole recipe that fit into the
    time, and their controls; then the missing seeds of both, then other rows. What does not fit is begun last, and
    goes on next time. What --out has collected is taken in where results/ lies: cat FOLDER/records.tar.* | tar -x;
    then state.tar.*
    """
    if minutes <= 0:
        raise typer.BadParameter(f"--minutes {minutes:g}: must be above zero")
    if not re.fullmatch(r"\d+(,\d+)*", seeds):
        raise typer.BadParameter(f"--seeds {seeds}: must be numbers with commas, as 0,1,2")
    if wrong := [o for o in overrides or [] if "=" not in o and not o.startswith("~")]:
        raise typer.BadParameter(f"{wrong[0]!r} is no override of reprune run: write KEY=VALUE")
    from reprune.sweeps.campaign_runs import Asked, main

    return main(Asked(minutes, rows.split(","), [*map(int, seeds.split(","))], [*filter(None, controls.split(","))],
                      overrides or [], at_once, dry_run, out, limit, part, ctx.obj))


@app.command()
def pack(folder: Path, part: Annotated[float, typer.Option(help="MiB of one piece")] = 60,
         python: Annotated[str, typer.Option(help="of that machine: 3.12; '': the source without packages")] = (
             ".".join(map(str, sys.version_info[:2]))),
         also: Annotated[list[Path] | None, typer.Option(help="more: outputs, images, weights; repeat it")] = None,
         ) -> None:
    """Make a bundle for campaigns on a machine with Linux, torch and torchvision, but no network.

    There: sh FOLDER/unpack.sh ANOTHER
    """
    from reprune.sweeps.bundle import pack

    pack(folder, part, python, also or [])


def main(argv: list[str] | None = None) -> int:
    """-> exit status"""
    sys.path.insert(0, "")                                        # methods and nets of the user's own
    try:
        argv = sys.argv[1:] if argv is None else argv
        return app(argv, prog_name="reprune", standalone_mode=False, obj=argv) or 0
    except UserError as error:
        return ended([str(error)])
    except typer.TyperException as error:
        error.show()
        return getattr(error, "exit_code", 1)


if __name__ == "__main__":
    sys.exit(main())
