"""The weight of a row's penalty, by one rule: the largest whose sparse net loses at most 0.3 points of top-1 on
held-out images. How much one net bears says little of another, and many papers state no weight.

    reprune run -m experiments=PAPER/ROW method.prunes=false method.penalties.hgsr.weight=1e-3,3e-4,1e-4
    reprune weight PAPER/ROW              what these records say, and which weight the rule chooses

Each value costs its sparse training alone. The loss is against the baseline of the same seed, averaged over the seeds;
baselines that were given do not count: they may have learnt from the images held out here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from reprune.errors import UserError
from reprune.results.records import read_runs

MOST = 0.3                  # points


def chosen(losses: Mapping[float, float], most: float = MOST) -> float | None:
    """The rule. losses: of each weight that was tried, in points.

    >>> chosen({1e-3: 14.5, 1e-4: 1.9, 2e-5: 0.1, 1e-5: -0.1}), chosen({1e-3: 14.5})
    (2e-05, None)
    """
    return max((weight for weight, loss in losses.items() if loss <= most), default=None)


def tried(root: Path, row: str) -> dict[float, list[tuple[float, float]]]:
    """The sweep of a row with the longest sparse training: {weight: (baseline, sparse) on held-out images, by seed}."""
    runs, configs = read_runs(root, [])
    sweeps: dict[tuple, dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        of, config = run.record, configs[run.config_id]
        weights = [name for name in config if name.startswith("method.penalties.") and name.endswith(".weight")]
        known = of.sparse and of.sparse.val_top1 is not None and of.baseline.val_top1 is not None
        if of.experiment == row and config.get("method.prunes") is False and len(weights) == 1 and known \
                and of.baseline.source == "trained here":
            rest = sorted((name, repr(value)) for name, value in config.items() if name != weights[0])
            sweep = sweeps[of.epochs.sparse, of.epochs.baseline, str(rest)]
            sweep[float(config[weights[0]])].append((of.baseline.val_top1, of.sparse.val_top1))
    return dict(sweeps[max(sweeps)]) if sweeps else {}


def losses(found: Mapping[float, list[tuple[float, float]]]) -> dict[float, float]:
    return {weight: fmean(before - after for before, after in each) for weight, each in found.items()}


def main(row: str, root: Path) -> None:
    found = tried(root, row)
    if not found:
        raise UserError(f"results/runs holds no record of {row} with method.prunes=false and a baseline trained here; "
                        f"try weights: reprune run -m experiments={row} method.prunes=false "
                        "method.penalties.hgsr.weight=1e-3,1e-4,1e-5")
    table = Table("weight", "baseline, held out", "after sparse training", "points lost", "seeds")
    lost = losses(found)
    for weight, each in sorted(found.items(), reverse=True):
        before, after = (fmean(side) for side in zip(*each, strict=True))
        table.add_row(f"{weight:g}", f"{before:.2f}", f"{after:.2f}", f"{lost[weight]:.2f}", str(len(each)))
    console, best = Console(highlight=False, soft_wrap=True), chosen(lost)
    console.print(table)
    console.print(f"the largest that loses at most {MOST} points: " + ("none, try smaller ones" if best is None else
                                                                       f"{best:g}"))
