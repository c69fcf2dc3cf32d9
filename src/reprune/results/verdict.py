"""The verdict on a claim: computed from the claim and the runs of one line, by one rule for all papers.

Gap: by how much we fall short of the claim. A better result has no gap.

1. Only runs of the whole recipe are judged; short and changed runs are *not comparable*.
2. Accuracy. The gap is the paper's delta (pruned - baseline, in points) minus ours, which is taken against our own
   baseline of the same seed. A delta alone is enough. Where the paper gives nothing but the accuracy of the pruned net,
   that is compared. Tolerance: two standard errors over our seeds, at least 0.3 and at most 1 point. At least 0.3: the
   standard error of an accuracy near 93 % on 10,000 test images is 0.26, and the paper's number is usually one run.
   At most 1: runs that scatter must not agree with everything.
3. Bounds. "Better than the baseline" is a delta above 0, "no loss" one of 0 or more. No tolerance: they name a side.
4. Reduction. As many parameters and MACs gone as claimed, 0.5 % of the net missing at most; "more than" without
   tolerance; "up to" is held against the number itself. A file as many times smaller as claimed, and as many weights
   zero, 0.5 missing at most.
5. *Reproduced*: no gap beyond its tolerance. *Within x*: no gap above 1 (point, or % of the net). *Off by x* otherwise.
   x names every gap beyond its tolerance. The number of seeds is part of the verdict.
6. *Not comparable* are top-5 claims (we measure top-1), claims that are ambiguous in the paper and claims without an
   accuracy: any net can be made smaller.

>>> paper = Claim(baseline=93.04, pruned=93.06, params_drop=13.7, macs_drop=27.6, source="Table 1", provenance="paper")
>>> ours = {"delta": -0.25, "delta_std": 0.1, "seeds": 3, "pruned_top1": 93.1, "params_drop": 13.8, "macs_drop": 27.2}
>>> verdict(paper, "full", ours)                                # a gap of 0.27: within the tolerance of 0.3
'reproduced (3 seeds)'
>>> verdict(paper, "full", {**ours, "delta": -0.7, "seeds": 1, "delta_std": None})
'within 0.72 points (1 seed)'
>>> verdict(paper, "full", {**ours, "macs_drop": 20.0})
'off by 7.6 % of MACs (3 seeds)'
>>> verdict(Claim(better_than_baseline=True, source="abstract", provenance="abstract"), "full", ours)
'within 0.25 points (3 seeds)'
>>> stored = Claim(pruned=93, memory_ratio=40, source="Table 1", provenance="paper")
>>> verdict(stored, "full", {**ours, "bytes_ratio": 38})
'off by 2.0 times fewer bytes (3 seeds)'
>>> verdict(paper, "short", ours)
'not comparable: short run'
>>> verdict(Claim(macs_drop=20, source="abstract", provenance="abstract"), "full", ours)
'not comparable: no accuracy claimed'
"""

from __future__ import annotations

import math

from reprune.schema import Claim

LEAST, MOST = 0.3, 1.0          # points of accuracy: limits of the tolerance
REDUCTION = 0.5                 # % of the net
NEAR = 1.0                      # points, or % of the net
KINDS = ("reproduced", "within", "off", "not comparable", "not run")        # the best first


def verdict(claim: Claim | None, section: str, ours: dict) -> str:
    """ours: of a line: delta, delta_std, seeds, pruned_top1, params_drop, macs_drop, bytes_ratio, density."""
    if claim is None:
        return ""
    if section == "not run":
        return section
    if section != "full":
        return f"not comparable: {section} run"
    if claim.metric == "top5":
        return "not comparable: top-5 claimed, top-1 measured"
    if claim.ambiguous:
        return "not comparable: ambiguous in the paper"
    accuracy = accuracy_gap(claim, ours)
    if accuracy is None:
        return "not comparable: no accuracy claimed"
    beyond = [("points", *accuracy, ".2f")] if missed(*accuracy) else []
    for what, name in (("params", "parameters"), ("macs", "MACs")):
        gap = reduction_gap(claim, what, ours[f"{what}_drop"])
        if missed(*gap):
            beyond.append((f"% of {name}", *gap, ".1f"))
    for unit, said, got in (("times fewer bytes", claim.memory_ratio, ours.get("bytes_ratio")),
                            ("% of zeros", claim.weight_sparsity, zeros(ours.get("density")))):
        if said is not None and got is None:
            return f"not comparable: {said:g} {unit} claimed, none measured"
        if said is not None and missed(said - got, REDUCTION):
            beyond.append((unit, said - got, REDUCTION, ".1f"))
    seeds = f"({ours['seeds']} seed{'s' * (ours['seeds'] != 1)})"
    if not beyond:
        return f"reproduced {seeds}"
    word = "within" if all(gap <= NEAR for _, gap, _, _ in beyond) else "off by"
    return f"{word} {', '.join(f'{gap:{form}} {unit}' for unit, gap, _, form in beyond)} {seeds}"


def zeros(density: float | None) -> float | None:
    """% of the weights, where the line knows of any."""
    return None if density is None else 100 - density


def missed(gap: float, tolerance: float | None) -> bool:
    """tolerance None: an open bound, which equality does not meet."""
    return gap >= 0 if tolerance is None else round(gap - tolerance, 6) > 0


def tolerance(std: float | None, seeds: int) -> float:
    """Two standard errors over the seeds, within limits.

    >>> tolerance(0.6, 4), tolerance(None, 1), tolerance(5.0, 2)
    (0.6, 0.3, 1.0)
    """
    return min(MOST, max(LEAST, 0.0 if std is None else 2 * std / math.sqrt(seeds)))


def accuracy_gap(claim: Claim, ours: dict) -> tuple[float, float | None] | None:
    """-> (gap in points, tolerance); None where the claim has no accuracy."""
    allowed = tolerance(ours["delta_std"], ours["seeds"])
    if claim.step is not None:
        return claim.step - ours["delta"], allowed
    if claim.better_than_baseline:
        return 0.0 - ours["delta"], None
    if claim.no_accuracy_loss:
        return 0.0 - ours["delta"], 0.0
    return None if claim.pruned is None else (claim.pruned - ours["pruned_top1"], allowed)


def reduction_gap(claim: Claim, what: str, ours: float) -> tuple[float, float | None]:
    """-> (gap in % of the net, tolerance), of "params" or "macs"."""
    for end, allowed in (("", REDUCTION), ("_min", None), ("_max", REDUCTION)):
        if (claimed := getattr(claim, f"{what}_drop{end}")) is not None:
            return claimed - ours, allowed
    return -math.inf, 0.0                                         # not claimed


def kind(text: str) -> str:
    """The kind of a verdict, one of KINDS.

    >>> kind("off by 1.30 points (3 seeds)")
    'off'
    """
    return next(k for k in KINDS if text.startswith(k))
