"""A project of one paper for the tests of tables: two claimed rows, one of our own, and the records one asks for."""

import copy
import json
import re

from reprune.__main__ import main
from reprune.runs.store import key_of

FULL, SHORT, CHANGED, OWN = "The paper's rows", "Short runs", "Changed runs", "Rows of our own"
LEADS = {FULL: "Whole recipe", SHORT: "Short run", CHANGED: "Changed run", OWN: "Ours", "Rows": "Ours"}
PAPER = {"baseline": 160, "sparse": 0, "recover": 40}
ROW = """\
# @package _global_
# Someone 2020, Table 1, Net-{name}.    python run.py experiments=some2020/{name}
defaults:
  - override /method: l1
  - override /recipe: some2020
method: {{allocation: {{rates: {{1: 0.5}}}}}}
"""
CLAIM = ("claim: {baseline: 93.04, pruned: 93.06, params_drop: 13.7, macs_drop: 27.6, source: Table 1, "
         "provenance: paper}\n")


def project(tmp_path):
    """No runs yet."""
    folder = tmp_path / "experiments" / "some2020"
    folder.mkdir(parents=True)
    for name, claim in (("A", CLAIM), ("B", CLAIM.replace("93.06", "92.54")), ("own-half", "")):
        (folder / f"{name}.yaml").write_text(ROW.format(name=name) + claim)
    (tmp_path / "experiments" / "papers.yaml").write_text("some2020: {title: Some Paper, venue: CONF 2020}\n")
    return tmp_path


def record(root, row="A", seed=0, base=93.0, top1=92.0, key=None, **changes):
    """Writes a record; `changes` are dotted names with __ for the dot: epochs__recover=1."""
    content = {
        "schema": 1, "key": key, "status": "done",
        "experiment": f"some2020/{row}", "claim": None, "method": "l1", "model": "net", "dataset": "cifar10",
        "recipe": "some2020", "seed": seed,
        "config": {"model": {"name": "net", "of": row},                # a key for each row
                   "dataset": {"name": "cifar10", "limit": None, "data_dir": "/secret/place"},
                   "method": {"name": "l1", "allocation": {"rates": {"1": 0.5}}}, "trainer": {"precision": "32-true"},
                   "recipe": {"name": "some2020", "recover": {"epochs": 40, "lr": 0.001}}, "seed": seed},
        "baseline": {"top1": base, "params": 1000, "macs": 2000, "latency_ms": 8.0, "source": "trained here"},
        "pruned": {"top1": top1, "top1_best": None, "params": 750, "macs": 1000, "latency_ms": 5.0},
        "latency": {"batch_size": 64, "threads": 2, "device": "cpu"},
        "epochs": dict(PAPER), "paper_epochs": dict(PAPER), "env": {"git": "abc123", "torch": "2.15.0"},
        "started": "2026-01-01T00:00:00Z"}
    for name, value in changes.items():
        *path, last = name.split("__")
        node = content
        for part in path:
            node = node[part]
        node[last] = copy.deepcopy(value)
    content["key"] = content["key"] or key_of(content["config"])
    file = root / "results" / "runs" / f"{content['key']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def claim(root, stated, row="A", place="source: Table 1, provenance: paper"):
    """Gives a row another claim."""
    (root / f"experiments/some2020/{row}.yaml").write_text(ROW.format(name=row) + f"claim: {{{stated}, {place}}}\n")


def tables(root, rc=0):
    assert main(["tables", "--root", str(root)]) == rc
    return (root / "results" / "some2020.md").read_text()


def index(root):
    """{paper: its line as {column: cell}} of results/README.md, of its tables together"""
    found = {}
    for cells in rows_of((root / "results/README.md").read_text().split("## The verdict")[0]):
        found.setdefault(next(iter(cells.values())).split("](")[1].split(".md)")[0], {}).update(cells)
    return found


def rows_of(text):
    """The lines of all tables, as {column: cell}."""
    for block in text.split("\n\n"):
        lines = [[c.strip() for c in re.split(r"(?<!\\)\|", line[1:-1])] for line in block.splitlines()
                 if line.startswith("|")]
        yield from (dict(zip(lines[0], cells, strict=True)) for cells in lines[2:])


def section(text, title):
    """{row name: its lines as {column: cell}} of the tables under a heading, each with what its details say. Several
    lines of a row follow one another."""
    assert f"## {title}" in text, f"no section {title!r}"
    found, known = {}, details(text)
    for cells in rows_of(text.split(f"## {title}")[1].split("\n## ")[0]):
        name = cells["row"].split("]")[0].lstrip("[")
        source, *lines = [facts for lead, facts in known.get(name, [("", {})]) if lead in ("", LEADS.get(title))]
        at = len(found.setdefault(name, []))
        found[name].append({**source, **(lines[at] if at < len(lines) else {}), **cells})
    return found


def details(text):
    """{row name: [(lead, {name: value})]}, first of the row itself, then of its lines"""
    found = {}
    for block in text.partition("## Details\n")[2].split("\n### ")[1:]:
        name, *parts = re.split(r"\n\n\*(.+)\*\n\n", "\n" + block)
        name, _, source = name.strip().partition("\n")
        bodies = [("", source), *zip(parts[::2], parts[1::2], strict=True)]
        found[name] = [(lead, facts(body) | ({} if lead else {"what it is": source.split("\n")[1]}))
                       for lead, body in bodies]
    return found


def facts(text):
    """Of a list `- name: value`; runs: those below it."""
    found = dict(line[2:].split(": ", 1) for line in text.splitlines() if re.match("- .+: ", line))
    runs = [line.strip(" -") for line in text.splitlines() if line.startswith("  - ")]
    return found | ({"runs": runs} if runs else {})
