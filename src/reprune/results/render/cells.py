"""The lines of the pages' tables, as {column: cell}. Every number is read from a claim or from a line."""

from __future__ import annotations

import re

from reprune.results.lines import Line
from reprune.results.records import Run
from reprune.results.render.text import epochs, origin, points, removed, spread, stated, top1
from reprune.schema import Row

REMARKS = {"from_error": "printed as errors", "ambiguous": "ambiguous there", "baseline_source": "baseline: {}",
           "params_provenance": "parameters: {}"}


def row_link(row: Row, paper: str) -> str:
    """On the page of another paper, with the row's folder."""
    return f"[{row.id.removeprefix(f'{paper}/')}](../experiments/{row.id}.yaml)"


def run_links(runs: list[Run]) -> str:
    return " ".join(f"[{run.record.key[:8]}](runs/{run.record.key}.json)" for run in runs)


def commits(line: Line) -> str:
    """Where the runs of a line do not share one checkout, or one number of threads."""
    made_at, threads = line["commits"], line["threads"]
    names = ", ".join(name[:7] + "+" * name.endswith("+") for name in made_at)
    return "; ".join([f"{len(made_at)} commits: {names}"] * (len(made_at) > 1) +
                     [f"{', '.join(map(str, threads))} threads"] * (len(threads) > 1))


def accuracy(line: Line, paper: str) -> dict[str, str]:
    claim = line.row.claim
    cells = {"row": row_link(line.row, paper), "paper: baseline → pruned": stated(claim, "accuracy"),
             "paper Δ": stated(claim, "delta")}
    if not line.runs:
        return cells | {"ours: baseline → pruned": line.setting or "not run"}
    return cells | {
        "ours: baseline → pruned": top1(line), "our Δ": points(line["delta"]), "verdict": line.verdict,
        "after sparse training": spread(line, "top1_sparse"),
        "before recovery": spread(line, "top1_before_recovery"), "best epoch on test": spread(line, "top1_best"),
        "seeds": str(line["seeds"]), "epochs, run/paper": epochs(line), "setting": line.setting,
        "runs": run_links(line.runs)}


def cost(line: Line, paper: str) -> dict[str, str]:
    """What a machine was measured on is a column of its own."""
    cells, claim = {"row": row_link(line.row, paper)}, line.row.claim
    for name, key in (("parameters", "params"), ("MACs", "macs")):
        beside = (": paper / ours", f"{stated(claim, f'{key}_drop')} / ") if claim else ("", "")
        cells[f"{name} removed, %{beside[0]}"] = beside[1] + removed(line, key)
    speed = {f"measured speed-up ({machine})": f"{ratio:.2f}x" for machine, ratio in sorted(line.speed)}
    return cells | speed | ({"made at": commits(line), "runs": run_links(line.runs)} if line.runs else {})


def compared(line: Line, paper: str) -> dict[str, str]:
    """A row without a claim, a control, or a row that stands on the page of another paper."""
    cells = {"row": row_link(line.row, paper), "control": line.control or ""}
    if not line.runs:
        return cells | {"method": line.series, "baseline → pruned": line.setting or "not run"}
    return cells | {
        "method": line.series, "baseline → pruned": top1(line), "Δ": points(line["delta"]),
        "after sparse training": spread(line, "top1_sparse"),
        "before recovery": spread(line, "top1_before_recovery"), "seeds": str(line["seeds"]),
        "epochs" + (", run/paper" if line.row.claim else ""): epochs(line),
        "setting": line.setting, "runs": run_links(line.runs)}


def norms(line: Line, run: Run, paper: str) -> dict[str, str]:
    """How many groups sparse training has emptied."""
    weights = [f"{name.split('.')[2]} {value}" for name, value in sorted(line.config.items())
               if name.startswith("method.penalties.") and name.endswith(".weight")]
    others = [said for said in line.setting.split(", ") if not re.match(r"`method\.penalties\.\w+\.weight=", said)]
    norm, of = run.norms, run.record
    return {"row": row_link(line.row, paper), "model": of.model, "setting": ", ".join(others),
            "penalty's weight": ", ".join(weights),
            "seed": str(of.seed), "sparse epochs": str(of.epochs.sparse), "groups": str(norm["groups"]),
            "largest": f"{norm['largest']:.3g}", "median": f"{norm['median']:.3g}",
            "% below 1 % of the layer's largest": f"{100 * norm['near'] / norm['groups']:.1f}",
            "% below 0.01": f"{100 * norm['small'] / norm['groups']:.1f}", "run": run_links([run])}


def source(row: Row, paper: str) -> dict[str, str]:
    cells, claim = {"row": row_link(row, paper), "what it is": row.title}, row.claim
    if claim:
        said = [text.format(value) for name, text in REMARKS.items() if (value := getattr(claim, name)) is not None]
        also = ", ".join(f"{name.replace('_', ' ')} {value:.15g}" for name, value in claim.also().items())
        cells |= {"claim from": "; ".join([origin(claim), *said]), "the paper's setting": claim.setting or "",
                  "also stated": re.sub(r" ([kmgb]) (?=\d)", lambda unit: f" ({unit[1].upper()}) ", also),
                  "reconstructed here": claim.reconstruction or ""}
    return cells | {"command": f"`{row.command}`"}


def ran(run: Run) -> dict[str, str]:
    of = run.record
    return {"run": run_links([run]), "row": of.experiment.split("/")[1], "control": of.control or "",
            "seed": str(of.seed), "method": of.method, "model": of.model, "data": of.dataset, "recipe": of.recipe,
            "baseline": f"{of.baseline.top1:.2f}, {of.baseline.source}", "pruned": f"{of.pruned.top1:.2f}",
            "commit": of.env.git or "unknown", "torch": of.env.torch or "unknown"}
