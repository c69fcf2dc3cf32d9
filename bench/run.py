"""Runs every benchmark of this folder and writes results/bench.md.      python bench/run.py [NAME ...]

Each is one file with `main() -> list[dict]`, one dict per line of its table; all compare side by side in one run.
"""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from runpy import run_path
from time import perf_counter

import torch
from tabulate import tabulate

from reprune.files import write_text

HERE = Path(__file__).resolve().parent


def main(names: list[str]) -> None:
    files = sorted(f for f in HERE.glob("*.py") if f.name != "run.py" and (not names or f.stem in names))
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "torchvision", "torch-pruning"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    parts = ["# Benchmarks\n",
             f"Made by `make bench`. {os.cpu_count()} {platform.machine()} cores, {device}, {versions}. Times drift "
             "between machines and runs: compare the ratios, which are measured side by side."]
    for file in files:
        print(f"{file.stem} ...", flush=True)
        start, module = perf_counter(), run_path(str(file))
        table = tabulate(module["main"](), headers="keys", tablefmt="github")
        parts.append(f"\n## {file.stem}\n\n{module['__doc__'].strip()}\n\n{table}\n\n{perf_counter() - start:.0f} s")
        print(table)
    if not names:
        write_text(HERE.parent / "results" / "bench.md", "\n".join(parts) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
