"""The page of `compatibility`: results/compatibility.md and the record of its numbers beside it."""

import json
import statistics

EXACT = 1e-9                                                      # an error below it is rounding

HEAD = """# Nets that can be pruned

All CNNs of torchvision and {n_timm} of timm, with random weights; 40 % of the filters of every group go, at random, and
the smaller net is compared with the whole one whose filters are zero. *error*: the largest difference of their outputs
beside the change that a small change of the input makes, in float64: 1e-12 is rounding. torch-pruning does the same to
the same nets (`BasePruner`, 40 %, magnitude) and is compared with its own masked net. Made by
`python tests/compatibility.py`, numbers in [compatibility.json](compatibility.json).

"""


def number(value, digits=2):
    return "" if value is None else f"{100 * value:.{digits - 2}f} %"


def exact(row):
    return row.get("error") is not None and row["error"] <= EXACT


def summary(rows):
    lines = ["| | nets | reprune: traced | with groups | equal | torch-pruning: builds | runs | equal |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for library in ("torchvision", "timm"):
        these = [r for n, r in rows.items() if n.startswith(library)]
        if these:
            own, other = [r["ours"] for r in these], [r["theirs"] for r in these]
            counts = [len(these), *(sum(bool(r.get(k)) for r in own) for k in ("traced", "groups")),
                      sum(map(exact, own)), *(sum(bool(r.get(k)) for r in other) for k in ("builds", "runs")),
                      sum(map(exact, other))]
            lines.append(f"| {library} | " + " | ".join(map(str, counts)) + " |")
    both = [r["ours"]["seconds"] / r["theirs"]["seconds"] for r in rows.values()
            if r["ours"].get("seconds") and r["theirs"].get("seconds")]
    cut = [(r["ours"]["macs_cut"], r["theirs"]["macs_cut"]) for r in rows.values()
           if "macs_cut" in r["ours"] and "macs_cut" in r["theirs"]]
    if both:
        mine, peer = (100 * statistics.mean(pair[i] for pair in cut) for i in (0, 1))
        lines += ["", "Seconds to trace, beside a dependency graph of torch-pruning: median "
                      f"{statistics.median(both):.2f} times, worst {max(both):.2f} times. MACs that go where both "
                      f"prune: mean {mine:.0f} % and {peer:.0f} %."]
    return lines


def line(name, row):
    own, other = row["ours"], row["theirs"]
    said = own.get("failed") or "; ".join(w.removesuffix(": the channels that reach it are kept")
                                          for w in own.get("warnings", []))
    verdict = "no groups" if own.get("groups") == 0 else f"{own['error']:.0e}" if "error" in own else "fails"
    theirs = f"{other['error']:.0e}" if "error" in other else "does not build" if not other.get("builds") else \
        "does not run" if other.get("prunes") else "does not prune"
    return (f"| {name} | {own.get('groups', '')} | {number(own.get('params_cut'))} | {number(own.get('macs_cut'))} | "
            f"{verdict} | {own.get('seconds', 0):.2f} | {number(other.get('macs_cut'))} | {theirs} | "
            f"{other.get('seconds', 0):.2f} | {said.replace('|', '/')[:160]} |")


def write(rows, path):
    rows = dict(sorted(rows.items(), key=lambda r: (r[0].startswith("timm"), r[0])))
    n_timm = sum(n.startswith("timm") for n in rows)
    table = ["| net | groups | params cut | MACs cut | error | s | torch-pruning: MACs cut | error | s | kept |",
             "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"]
    table += [line(n.removeprefix("torchvision/"), r) for n, r in rows.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD.format(n_timm=n_timm) + "\n".join([*summary(rows), "", *table]) + "\n")
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
