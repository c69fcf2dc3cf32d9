"""Benchmarks: each says what it is and how to run it, and one that fails costs nobody else's numbers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
SIDE = "from common import at_least, at_most, value\n"


def files():
    return [f for f in sorted(BENCH.glob("*.py")) if f.name not in ("run.py", "common.py")]


@pytest.mark.parametrize("file", files(), ids=lambda f: f.stem)
def test_a_benchmark_says_what_it_measures_and_its_command(file):
    tree = ast.parse(file.read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert f"python bench/{file.name}" in ast.get_docstring(tree) and "main" in functions


def test_benchmarks_import():
    """In one process, which also shows that none of them begins to measure when it is only read."""
    names = [f.stem for f in files()]
    code = f"import sys; sys.path.insert(0, {str(BENCH)!r}); import {', '.join(names)}; print('all')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == "all", said.stderr


SMALL = {
    "a": """def main():
    return [{"way": "x", "ms": 3.0}]
def targets(rows):
    ms = value(rows, "ms", way="x")
    return [at_most("x", ms, 4, " ms"), at_most("x again", ms, 2.5, " ms")]""",
    "b": """def main():
    raise ValueError("no such thing")
def targets(rows):
    return [at_least("y", value(rows, "ms"), 1)]""",
    "c": """import os, signal
def main():
    os.kill(os.getpid(), signal.SIGKILL)""",
    "d": """def missing():
    return "no GPU"
def main():
    1 / 0""",
    "e": """def main():
    return [{"held": len(b"x" * (200 << 20))}]""",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Small benchmarks, run as `make bench` runs ours -> exit status, report, {heading: section}"""
    folder = tmp_path_factory.mktemp("bench")
    for name, code in SMALL.items():
        (folder / f"{name}.py").write_text(f'"""What {name} is."""\n{SIDE}{code}\n')
    run = subprocess.run([sys.executable, str(BENCH / "run.py"), "--folder", str(folder), "--report",
                          str(folder / "bench.md")], capture_output=True)
    text = (folder / "bench.md").read_text()
    return run.returncode, text, {part.split("\n")[0]: part for part in text.split("\n## ")}


def test_failures_are_told_and_the_others_stay(report):
    status, _, sections = report
    assert status == 1
    assert "|    3 |" in sections["a"] and "Failed" not in sections["a"]
    assert "**Failed**: `ValueError: no such thing`" in sections["b"]
    assert "ended with status -9" in sections["c"]
    assert "209715200" in sections["e"]


def test_what_cannot_be_measured_is_no_failure(report):
    _, text, sections = report
    assert "not measured: no GPU" in sections["d"] and "Failed" not in sections["d"]
    assert "**Failed**: b, c\n" in text


def test_targets_are_held_against_the_measured_lines(report):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report[2]["Targets"].splitlines()
             if line.startswith("| [")]
    assert lines == [["[a](#a)", "x", "at most 4 ms", "3 ms", "yes"],
                     ["[a](#a)", "x again", "at most 2.5 ms", "3 ms", "no, missed by 20 %"],
                     ["[b](#b)", "y", "at least 1", "not measured", "not measured"]]


def test_peak_memory_is_of_each_benchmark_alone(report):
    def peak(name):
        return int(report[2][name].split("peak ")[1].split(" MiB")[0])

    assert 200 < peak("e") < 300 and peak("a") < 100


def test_one_measured_again_stands_beside_the_others(tmp_path):
    def measured(number, *names):
        (tmp_path / "a.py").write_text(f'"""What a is."""\ndef main():\n    return [{{"ms": {number}}}]\n')
        run = [sys.executable, str(BENCH / "run.py"), *names, "--folder", str(tmp_path), "--report"]
        subprocess.run([*run, str(tmp_path / "bench.md")], capture_output=True, check=True)
        return (tmp_path / "bench.md").read_text()

    (tmp_path / "b.py").write_text('"""What b is."""\ndef main():\n    return [{"ms": 77}]\n')
    assert "  11 |" in measured(11)
    again = measured(22, "a")
    assert "  22 |" in again and "  77 |" in again and "  11 |" not in again


def test_a_name_that_is_no_benchmark():
    said = subprocess.run([sys.executable, str(BENCH / "run.py"), "nothing"], capture_output=True, text=True)
    assert said.returncode == 2 and f"no benchmark nothing; there are {files()[0].stem}, " in said.stderr
