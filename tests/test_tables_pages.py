"""What pages show around the rows of a paper: rows of other folders, group norms, the index; what --check finds."""

from pathlib import Path

import pytest
from project import CHANGED, CLAIM, FULL, ROW, index, project, record, rows_of, section, tables

from reprune.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def root(tmp_path):
    return project(tmp_path)


# ---------------------------------------------------------------- what papers.yaml adds

BESIDE = "Beside other methods"


def describe(root, fields):
    (root / "experiments/papers.yaml").write_text(f"some2020: {{title: Some Paper, {fields}}}\nour: {{title: Ours}}\n")


@pytest.fixture
def controls(root):
    """Rows of a folder of our own, one of them run twice."""
    (root / "experiments" / "our").mkdir()
    for name in ("net-l1", "net-random", "wide-l1"):
        text = ROW.format(name=name).replace("some2020/", "our/").replace("method: l1", f"method: {name.split('-')[1]}")
        (root / f"experiments/our/{name}.yaml").write_text(text)
    for seed, top1 in ((0, 92.0), (1, 91.0)):
        record(root, seed=seed, top1=top1, experiment="our/net-l1", paper_epochs=None)
    return root


def test_rows_of_other_folders_stand_beside(controls):
    describe(controls, "beside: [our/net-random, our/*-l1]")
    text = tables(controls)
    rows = section(text, BESIDE)
    assert list(rows) == ["our/net-l1", "our/net-random", "our/wide-l1"]
    (numbers,) = rows["our/net-l1"]
    assert numbers["row"] == "[our/net-l1](our.md#net-l1)" and numbers["method"] == "l1"
    assert numbers["baseline → pruned"] == "93.00 → 91.50 ± 0.71" and numbers["Δ"] == "-1.50"
    assert numbers["seeds"] == "2" and numbers["MACs removed, %"] == "50.0"
    assert rows["our/net-random"][0]["method"] == "random"
    assert rows["our/net-random"][0]["baseline → pruned"] == "not run"
    assert "](runs/" not in text                            # its details stand on its own page
    own = (controls / "results/our.md").read_text()         # and the folder itself is as it was
    assert section(own, "Rows")["net-l1"][0]["Δ"] == "-1.50" and own.count("](runs/") == 2
    assert BESIDE not in own and "no claim" not in own
    assert {paper: line["runs"] for paper, line in index(controls).items()} == {"our": "2", "some2020": "0"}


def test_a_row_stands_beside_once_and_never_beside_its_own_folder(controls):
    describe(controls, "beside: ['*/net-l1', 'our/net-*', '*/*1', '*/A']")
    (controls / "experiments/our/A.yaml").write_text(ROW.format(name="A").replace("some2020/", "our/") + CLAIM)
    rows = section(tables(controls), BESIDE)
    assert [len(rows[name]) for name in ("our/A", "our/net-l1", "our/net-random", "our/wide-l1")] == [1] * len(rows)


@pytest.mark.parametrize(("fields", "told"), [
    ("beside: [our/net-*, our/nut-*]", "some2020.beside 'our/nut-*' matches no row of another folder"),
    ("beside: [some2020/A]", "some2020.beside 'some2020/A' matches no row of another folder"),
    ("beside: our/net-l1", "some2020.beside: input should be a valid list, not 'our/net-l1'"),
    ("beside: [3]", "some2020.beside.0: input should be a valid string, not 3"),
    ("arxiv: 1608.08710", "some2020.arxiv: input should be a valid string, not 1608.0871"),
    ("reconstruction: true", "some2020.reconstruction: input should be a valid string, not True"),
    ("besides: [our/net-l1]", "some2020.besides is unknown, allowed: title, authors"),
])
def test_a_bad_description_is_one_line_and_the_rest_is_built(controls, capsys, fields, told):
    describe(controls, fields)
    text = tables(controls, rc=1)
    error = capsys.readouterr().err
    assert error.startswith("error: experiments/papers.yaml: some2020.") and told in error and error.count("\n") == 1
    assert set(section(text, FULL)) == {"A", "B"} and BESIDE not in text
    assert (controls / "results/our.md").read_text().startswith("# Ours\n")


def test_a_reconstruction_is_marked_on_its_page_and_in_the_index(root):
    record(root)
    tables(root)
    assert "n part" not in (root / "results/README.md").read_text()
    describe(root, "authors: A. Someone, doi: 10.1/23, note: A note., reconstruction: The formula is ours.")
    text = tables(root)
    first, told, *rest = text.split("\n\n")
    assert first == "# Some Paper" and told.startswith("**2 claims: 0 reproduced, ")
    assert rest[:3] == ["A. Someone, [doi:10.1/23](https://doi.org/10.1/23)",
        "**Reconstruction.** The formula is ours.", "A note."]
    assert "*In part*: " in (root / "results/README.md").read_text()
    assert index(root)["some2020"]["paper"].endswith(", in part")


# ---------------------------------------------------------------- group norms

NORMS = "Group norms after sparse training"


def sparse(root, norms, weight=None, **changes):
    penalties = {} if weight is None else {"penalties": {"hgsr": {"kind": "group_lasso", "weight": weight}}}
    method = {"name": "l1", "allocation": {"rates": {"1": 0.5}}, **penalties}
    return record(root, group_norms=norms, config__method=method, **{"epochs__sparse": 5, **changes})


def test_group_norms_show_what_sparse_training_emptied(root):
    layers = {"conv1": [2.0, 0.019, 0.005, 0.0], "conv2": [0.004, 0.5]}
    key = sparse(root, layers, weight=0.001).stem
    text = tables(root)
    line = next(rows_of(text.split(f"## {NORMS}")[1]))
    assert line == {"row": "[A](#a)", "penalty's weight": "hgsr 0.001", "median": "0.012",
                    "% below 1 % of the layer's largest": "66.7", "% below 0.01": "50.0",
                    "run": f"[{key[:8]}](runs/{key}.json)"}
    assert section(text, CHANGED)["A"][0]["runs"][0].endswith("; 6 groups, the largest norm 2")


def test_plain_training_stands_next_to_the_sparse_runs_of_its_net(root):
    sparse(root, {"conv1": [1.0, 0.001]}, weight=0.001, row="B", model="deep", seed=1)
    sparse(root, {"conv1": [1.0, 0.001]}, weight=0.001, seed=1)
    sparse(root, {"conv1": [1.0, 0.9]}, weight=0.0)
    sparse(root, {"conv1": [0.0, 0.0]}, row="own-half", model="deep")
    record(root, row="B")                                   # not trained sparse: not listed
    lines = list(rows_of(tables(root).split(f"## {NORMS}")[1].split("## ")[0]))
    assert [(line["row"].split("]")[0], line["penalty's weight"], line["% below 0.01"]) for line in lines] == [
        ("[A", "hgsr 0.0", "0.0"), ("[A", "hgsr 0.001", "50.0"), ("[B", "hgsr 0.001", "50.0"),
        ("[own-half", "", "100.0")]
    assert [line["row"] for line in lines[:2]] == ["[A](#a)"] * 2          # the weight has a column of its own
    sparse(root, {"conv1": [1.0]}, weight=0.001, config__recipe__recover__lr=0.1)
    settings = [line["row"] for line in section(tables(root), NORMS)["A"]]
    assert settings == ["[A](#a) `recover.lr=0.001`", "[A](#a) `recover.lr=0.001`", "[A](#a) `recover.lr=0.1`"]


def test_a_page_without_sparse_training_has_no_group_norms(root):
    record(root, group_norms=None)
    record(root, seed=1)
    assert NORMS not in tables(root)


def test_group_norms_of_rows_beside_are_shown_too(controls):
    describe(controls, "beside: [our/net-random]")
    sparse(controls, {"conv1": [1.0]}, experiment="our/net-random", method="random", paper_epochs=None)
    assert list(section(tables(controls), NORMS)) == ["our/net-random"]


def test_index_counts_claims_once_and_by_their_weakest_verdict(root):
    record(root, top1=93.0, config__recipe__recover__lr=0.01)
    record(root, row="B", epochs__recover=1)
    tables(root)
    assert index(root)["some2020"] == {
        "paper": "[Some Paper](some2020.md), CONF 2020", "claims": "2", "reproduced": "1", "not comparable": "1",
        "page": "[Some Paper](some2020.md)", "rows": "1"}
    told = "2 claims: 1 reproduced, 0 within x, 0 off by x, 1 short only"
    assert f"\n\n**{told}.** What these words mean" in (root / "results/some2020.md").read_text()
    assert (root / "results/README.md").read_text().startswith(f"# Results\n\n**1 paper, {told}.**\n")
    record(root, top1=91.0)                                 # another setting of A
    record(root, top1=93.0, epochs__recover=1, config__recipe__recover__lr=0.01, seed=1)        # adds nothing
    tables(root)
    assert index(root)["some2020"]["off by x"] == "1" and "reproduced" not in index(root)["some2020"]


def test_check_passes_on_what_was_written_and_changes_nothing(root, capsys):
    record(root)
    text = tables(root)
    files = {f: f.stat().st_mtime_ns for f in root.rglob("*")}
    assert main(["tables", "--check", "--root", str(root)]) == 0 and capsys.readouterr().err == ""
    assert files == {f: f.stat().st_mtime_ns for f in root.rglob("*")} and tables(root) == text


@pytest.mark.parametrize("what", ["record gone", "number edited", "claim edited", "table gone"])
def test_check_names_what_differs(root, capsys, what):
    file, table, row = record(root), root / "results/some2020.md", root / "experiments/some2020/A.yaml"
    tables(root)
    if what == "record gone":
        file.unlink()
    elif what == "number edited":
        table.write_text(table.read_text().replace("92.00", "93.00"))
    elif what == "claim edited":
        row.write_text(row.read_text().replace("93.04", "93.05"))
    else:
        table.unlink()
    assert main(["tables", "--check", "--root", str(root)]) == 1
    assert "results/some2020.md differs from what the records say: run make tables" in capsys.readouterr().err


def test_committed_tables_are_what_the_committed_records_say(capsys):
    assert main(["tables", "--check", "--root", str(REPOSITORY)]) == 0, capsys.readouterr().err
