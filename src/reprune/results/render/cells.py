"""The lines of the pages' tables and lists, as {name: text}. Every number is read from a claim or from a line."""

from __future__ import annotations

import re
from dataclasses import replace

from reprune.results.lines import Line
from reprune.results.records import Run
from reprune.results.render.text import epochs, origin, points, removed, sparsity, spread, stated, top1
from reprune.schema import Row

REMARKS = {"from_error": "printed as errors", "ambiguous": "ambiguous there", "baseline_source": "baseline: {}",
           "params_provenance": "parameters: {}"}


def row_link(line: Line, paper: str) -> str:
    """To the details of a row, here or on the page of another paper; with the setting, where a row has several."""
    row = line.row
    page = "" if row.paper == paper else f"{row.paper}.md"
    shown = re.sub(r"[\w.]+\.(?=\w+\.\w+=)", "", line.setting) if line.runs else ""         # the last two names will do
    return f"[{row.id.removeprefix(f'{paper}/')}]({page}#{anchor(row)})" + f" {shown}" * bool(shown)


def anchor(row: Row) -> str:
    """Of a row's heading, as code hosts and most renderers name it."""
    return re.sub(r"[^\w-]", "", row.id.split("/")[1].lower())


def run_link(run: Run) -> str:
    return f"[{run.record.key[:8]}](runs/{run.record.key}.json)"


def commits(line: Line) -> str:
    """Where the runs of a line do not share one checkout, or one number of threads."""
    made_at, threads = line["commits"], line["threads"]
    names = ", ".join(name[:7] + "+" * name.endswith("+") for name in made_at)
    return "; ".join([f"{len(made_at)} commits: {names}"] * (len(made_at) > 1) +
                     [f"{', '.join(map(str, threads))} threads"] * (len(threads) > 1))


def beside(line: Line, key: str) -> str:
    """Removed, in percent, of "params" or "macs": the paper's, where it has a claim, and ours."""
    claim = line.row.claim
    return f"{stated(claim, f'{key}_drop')} / {removed(line, key)}" if claim else removed(line, key) * bool(line.runs)


def accuracy(line: Line, paper: str) -> dict[str, str]:
    """A claim and what we ran; what else is known of the runs: `measured`."""
    claim = line.row.claim
    cells = {"row": row_link(line, paper), "paper: baseline → pruned": stated(claim, "accuracy"),
             "paper Δ": stated(claim, "delta"),
             "ours: baseline → pruned": top1(line) if line.runs else line.setting or "not run",
             "our Δ": points(line["delta"]) if line.runs else "", "MACs removed, %: paper / ours": beside(line, "macs"),
             **sparsity(line)}
    return cells | ({"verdict": line.verdict} if line.section == "full" else
                    {"epochs, run/paper": epochs(line) if line.runs else ""})


def compared(line: Line, paper: str) -> dict[str, str]:
    """A row without a claim, a control, or a row that stands on the page of another paper."""
    cells = {"row": row_link(line, paper), **({"control": line.control} if line.control else {"method": line.series}),
             "baseline → pruned": top1(line) if line.runs else line.setting or "not run"}
    return cells | ({"Δ": points(line["delta"]), "MACs removed, %": removed(line, "macs"),
                     **sparsity(line), "seeds": str(line["seeds"]), "epochs": epochs(line)} if line.runs else {})


def measured(line: Line) -> dict[str, str]:
    """What stands in no table. What a machine was measured on is named."""
    both = " (paper / ours)" * bool(line.row.claim)
    return {"verdict": line.verdict, "setting": line.setting, "seeds": str(line["seeds"]),
            "epochs, run/paper" if line.row.claim else "epochs": epochs(line), "baseline": line["baseline_source"],
            "after sparse training": spread(line, "top1_sparse"),
            "before recovery": spread(line, "top1_before_recovery"), "best epoch on test": spread(line, "top1_best"),
            f"parameters removed, %{both}": beside(line, "params"),
            **{f"measured speed-up ({machine})": f"{ratio:.2f}x" for machine, ratio in sorted(line.speed)},
            "made at": commits(line)}


def ran(run: Run) -> str:
    of, norm = run.record, run.norms
    return (f"{run_link(run)}: seed {of.seed}, {of.baseline.top1:.2f} → {of.pruned.top1:.2f}, commit "
            f"{of.env.git or 'unknown'}, torch {of.env.torch or 'unknown'}"
            + (f"; {norm['groups']} groups, the largest norm {norm['largest']:.3g}" if norm else ""))


def norms(line: Line, run: Run, paper: str) -> dict[str, str]:
    """How many groups sparse training has emptied."""
    weights = [f"{name.split('.')[2]} {value}" for name, value in sorted(line.config.items())
               if name.startswith("method.penalties.") and name.endswith(".weight")]
    others = [said for said in line.setting.split(", ") if not re.match(r"`method\.penalties\.\w+\.weight=", said)]
    norm = run.norms
    return {"row": row_link(replace(line, setting=", ".join(others)), paper), "penalty's weight": ", ".join(weights),
            "seed": str(run.record.seed), "median": f"{norm['median']:.3g}",
            "% below 1 % of the layer's largest": f"{100 * norm['near'] / norm['groups']:.1f}",
            "% below 0.01": f"{100 * norm['small'] / norm['groups']:.1f}", "run": run_link(run)}


def source(row: Row) -> dict[str, str]:
    cells, claim = {"file": f"[{row.id}.yaml](../experiments/{row.id}.yaml)", "command": f"`{row.command}`"}, row.claim
    if claim:
        said = [text.format(value) for name, text in REMARKS.items() if (value := getattr(claim, name)) is not None]
        also = ", ".join(f"{name.replace('_', ' ')} {value:.15g}" for name, value in claim.also().items())
        cells |= {"claim from": "; ".join([origin(claim), *said]), "the paper's setting": claim.setting or "",
                  "also stated": re.sub(r" ([kmgb]) (?=\d)", lambda unit: f" ({unit[1].upper()}) ", also),
                  "reconstructed here": claim.reconstruction or ""}
    return cells
