"""The page of what `run.py` has found: results/compatibility.md."""

from __future__ import annotations

import statistics
from pathlib import Path

from tabulate import tabulate

PAGE = Path(__file__).resolve().parents[2] / "results" / "compatibility.md"
EXACT = 1e-9                                                      # an error below it is rounding
HEAD = """# Nets that can be pruned

CNNs of torchvision ({torchvision} measured so far) and of timm ({timm}), with random weights, in float64, on the
smallest images that they take; not regnet_y_128gf, for its size. 40 % of the filters of every group go, at random, and
the smaller net is compared with the whole one whose filters are zero. *Error*: the largest difference of their outputs
beside the change that a small change of the images makes; 1e-12 is rounding. *Cut*: the share of parameters and MACs
that goes with 40 % of the filters of every group. torch-pruning does the same to the same nets (`BasePruner`, 40 %,
magnitude), and is compared with its own masked net. Seconds of processor time: to trace, and to build a dependency
graph. Made by `make compatibility`."""


def page(answers: dict[str, dict]) -> str:
    answers = dict(sorted(answers.items(), key=lambda item: (item[0].startswith("timm"), item[0])))
    counts = {library: sum(n.startswith(library) for n in answers) for library in ("torchvision", "timm")}
    table = tabulate([line(name, **answer) for name, answer in answers.items()], headers="keys", tablefmt="github",
                     disable_numparse=True)
    return "\n\n".join([HEAD.format(**counts), *summary(answers), table]) + "\n"


def exact(found: dict) -> bool:
    return found.get("error") is not None and found["error"] <= EXACT


def summary(answers: dict[str, dict]) -> list[str]:
    """How many nets get how far, and what both pruners can be compared by."""
    rows = []
    for library in ("torchvision", "timm"):
        for pruner, steps in (("ours", ("traced", "groups")), ("theirs", ("builds", "runs"))):
            found = [answer[pruner] for name, answer in answers.items() if name.startswith(library)]
            rows.append({"": library, "pruner": "reprune" if pruner == "ours" else "torch-pruning", "nets": len(found),
                         "traced": sum(bool(f.get(steps[0])) for f in found),
                         "smaller net runs": sum("error" in f or bool(f.get("runs")) for f in found),
                         "equal": sum(map(exact, found)),
                         "ran out of time": sum("no end" in f.get("failed", "") for f in found)})
    parts = [tabulate(rows, headers="keys", tablefmt="github")]
    both = [(a["ours"], a["theirs"]) for a in answers.values()]
    if times := [a["seconds"] / b["seconds"] for a, b in both if a.get("seconds") and b.get("seconds")]:
        parts.append(f"To trace a net takes {statistics.median(times):.2f} times as long as torch-pruning's graph of "
                     f"it in the median, {max(times):.2f} times at worst.")
    if cuts := [(a["macs_cut"], b["macs_cut"]) for a, b in both if exact(a) and exact(b)]:
        mine, peer = (100 * statistics.mean(values) for values in zip(*cuts, strict=True))
        parts.append(f"Where both are right ({len(cuts)} nets), {mine:.0f} and {peer:.0f} % of the MACs go on average.")
    costs = [a["cost_known"] for a, _ in both if "cost_known" in a]
    parts.append(f"The cost of the smaller net is known before it is made for {sum(costs)} of {len(costs)} nets.")
    return parts


def line(name: str, ours: dict, theirs: dict) -> dict[str, str]:
    kept = ours.get("failed") or "; ".join(w.removesuffix(": the channels that reach it are kept")
                                           for w in ours.get("warnings", []))
    return {"net": name.removeprefix("torchvision/"), "groups": str(ours.get("groups", "")),
            "parameters cut": share(ours.get("params_cut")), "MACs cut": share(ours.get("macs_cut")),
            "error": "no groups" if ours.get("groups") == 0 else error(ours), "s": seconds(ours),
            "torch-pruning: MACs cut": share(theirs.get("macs_cut")), "error ": error(theirs), "s ": seconds(theirs),
            "what is kept": kept.replace("|", "/")[:160]}


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def seconds(found: dict) -> str:
    return f"{found['seconds']:.2f}" if "seconds" in found else ""


def error(found: dict) -> str:
    """How far two outputs are apart, or where it ended."""
    if "error" in found:
        return f"{found['error']:.0e}"
    if "no end" in found.get("failed", ""):
        return found["failed"]
    return "does not run" if found.get("prunes") else "does not prune" if found.get("builds") else \
        "fails" if found.get("traced") else "cannot be traced"
