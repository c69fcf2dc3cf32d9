"""What `run.py` has found, as the tables of docs/imagenet-net.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
PAGE, FOUND = ROOT / "docs" / "imagenet-net.md", ROOT / "results" / "bench" / "imagenet.json"
MEASURED = re.compile(r"(<!-- measured -->\n)(.*?)(<!-- / -->)", re.S)
COLUMNS = {"cut": "no repair", "bn": "`recalibrate`", "refit": "`refit`", "refit+bn": "`refit`, `recalibrate`",
           "bn, epoch": "`recalibrate`, an epoch", "refit, epoch": "`refit`, an epoch"}
BUDGETS, CRITERIA = (0.8, 0.65), ("random", "l1", "fpgm", "taylor2019")


def code() -> list[str]:
    """The blocks of Python of the page, in their order."""
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def known() -> dict[str, dict]:
    return json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else {}


def page(text: str, found: dict[str, dict]) -> str:
    """The text with the numbers that have been found."""
    return MEASURED.sub(lambda part: part[1] + measured(found) + part[3], text)


def measured(found: dict[str, dict]) -> str:
    parts = [accuracies(found)] if "whole" in found else []
    if "speed" in found:
        parts.append(speeds(found["speed"]))
    return "\n" + "\n\n".join(parts or ["Not measured yet."]) + "\n\n"


def accuracies(found: dict[str, dict]) -> str:
    whole, trained = found["whole"], found.get("whole, epoch")
    rows = [["whole", f"{whole['params'] / 1e6:.2f} M", f"{whole['top1']:.1f}", *[""] * 3, top1(trained), ""]]
    for macs in BUDGETS:
        for criterion in CRITERIA:
            line = {column: found.get(f"{macs} {criterion} {column}") for column in COLUMNS}
            some = next(filter(None, line.values()), None)
            if some:
                rows.append([f"{macs:.0%} of the MACs, {criterion}", f"{some['params'] / 1e6:.2f} M",
                             *map(top1, line.values())])
    return (f"Top-1 in percent on the {whole['images']:,} validation images, among the ten breeds, one seed. The whole "
            f"net is as PyPI has it. {whole['unseen']} of the images are of ImageNet's own validation set, most others "
            "it was trained on: what a small net has lost is clearer here than how good a net is. The epoch is the one "
            "above, for the whole net too: compare a trained net with the trained whole one. An empty place was not "
            "measured.\n\n"
            + tabulate(rows, ["net", "parameters", *COLUMNS.values()], "github", disable_numparse=True,
                       colalign=("left", *["right"] * (1 + len(COLUMNS)))))


def top1(line: dict | None) -> str:
    return f"{line['top1']:.1f}" if line else ""


def speeds(speed: dict) -> str:
    rows = [[name, line["macs"] / speed["nets"]["whole"]["macs"], line["lowest"],
             speed["nets"]["whole"]["lowest"] / line["lowest"]] for name, line in speed["nets"].items()]
    return (f"One image at a time with onnxruntime, one thread, {speed['machine']}: milliseconds, the lowest of "
            f"{speed['rounds']} rounds in which all nets took turns. What the clock says depends on the widths: "
            "`multiple` is worth more than the budget.\n\n"
            + tabulate(rows, ["net", "MACs", "ms", "times faster"], "github", floatfmt=("", ".2f", ".1f", ".2f")))
