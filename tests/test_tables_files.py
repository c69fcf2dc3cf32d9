"""What tables show beside numbers: verdicts, versions, controls; all files made; rows that cannot run."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from project import CHANGED, CLAIM, FULL, SHORT, claim, project, record, section, tables

from reprune.__main__ import main
from reprune.runs.compose import composing
from reprune.runs.store import key_of

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def root(tmp_path):
    return project(tmp_path)


def test_the_verdict_is_shown_beside_the_accuracy_and_explained(root):
    record(root, row="B", top1=92.4)
    record(root, seed=1, epochs__recover=1)
    text = tables(root)
    assert section(text, FULL)["B"][0]["verdict"] == "reproduced (1 seed)"
    assert section(text, SHORT)["A"][0]["verdict"] == "not comparable: short run"
    assert "[one rule](README.md#the-verdict)" in text
    rule = (root / "results/README.md").read_text().split("## The verdict")[1]
    assert "at least 0.3 and at most 1 point" in rule and ">>>" not in rule


def test_commits_are_shown_where_a_line_has_several(root):
    record(root)
    assert "made at" not in section(tables(root), FULL)["A"][0]
    record(root, seed=1, env={"git": "fff0123456789", "torch": "2.15.0"})
    assert section(tables(root), FULL)["A"][0]["made at"] == "2 commits: abc123, fff0123"
    record(root, seed=2, env__threads=1)
    record(root, seed=3, env__threads=2)
    assert section(tables(root), FULL)["A"][0]["made at"].endswith("fff0123; 1, 2 threads")


def test_what_controls_reach_stands_beside_the_claim(root):
    """Runs of a row with a control are lines of that row, and no claim is held against them."""
    claimed = root / "experiments/some2020/A.yaml"
    claimed.write_text(claimed.read_text().replace("method: l1", "method: sfp"))
    record(root, method="sfp")
    for seed, top1 in enumerate((90.0, 89.0)):
        record(root, seed=seed, top1=top1, method="random", control="random", config__method__criterion="random")
    record(root, row="B", method="random", control="random", config__method__criterion="random")
    record(root, top1=60.0, method="sfp", control="scratch", epochs__recover=160, config__recipe__recover__epochs=160)
    text = tables(root)
    first, second = (section(text, "Controls")[name][0] for name in "AB")
    assert first["our Δ"] == "-1.00 (off by 1.02 points (1 seed))"
    assert first["random"] == "-3.50 (baseline 160/160, recover 40/40)" and first["l1"] == "not run"
    assert first["scratch"] == "-33.00 (baseline 160/160, recover 160/40)"
    assert second["l1"] == "the row itself" and second["scratch"] == "not run"
    each = [line for line in section(text, "Controls")["A"] if line.get("control")]
    assert [(line["control"], line["baseline → pruned"]) for line in each] == [
        ("random", "93.00 → 89.50 ± 0.71"), ("scratch", "93.00 → 60.00")]
    with (root / "results/results.csv").open(newline="") as file:
        found = [(line["control"], line["section"], line["seeds"], line["verdict"] != "")
                 for line in csv.DictReader(file) if line["row"] == "some2020/A"]
    assert found == [("", "full", "1", True), ("random", "control", "2", False), ("scratch", "control", "1", False)]


def test_csv_holds_every_line_and_check_covers_it(root, capsys):
    record(root, seed=0, top1=92.0)
    record(root, seed=1, top1=91.0)
    record(root, seed=1, top1=50.0, epochs__recover=1, config__recipe__recover__epochs=1)
    tables(root)
    file = root / "results/results.csv"
    with file.open(newline="") as text:
        found = list(csv.DictReader(text))
    assert [(line["row"], line["section"], line["delta"], line["seeds"]) for line in found] == [
        ("some2020/A", "short", "-43", "1"), ("some2020/A", "full", "-1.5", "2"), ("some2020/B", "not run", "", "0"),
        ("some2020/own-half", "not run", "", "0")]
    file.write_text(file.read_text().replace("-43", "-4"))
    assert main(["tables", "--check", "--root", str(root)]) == 1
    assert "results/results.csv differs" in capsys.readouterr().err


def test_the_same_bytes_whatever_the_order_of_files_and_keys(root, tmp_path_factory, monkeypatch):
    other = project(tmp_path_factory.mktemp("other"))
    runs = [{"seed": seed, "top1": 92 + 0.1 * seed / 3, "config__recipe__recover__lr": lr, "row": row}
            for seed in range(5) for lr in (1, 2) for row in "AB"]
    for run in runs:
        record(root, **run)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    for run in reversed(runs):
        file = record(other, **run)
        file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items())), indent=3))
    made = []
    for where in (root, other, root):
        tables(where)
        made.append({file.relative_to(where): file.read_bytes() for file in where.rglob("results/**/*")
                     if file.is_file() and file.suffix != ".json"})
    assert made[0] == made[1] == made[2] and len(made[0]) == 4


def test_latex_escapes_what_it_must_and_names_the_runs(root):
    (root / "experiments/papers.yaml").write_text("some2020: {title: '50 % of A_b & {C} → ±'}\n")
    claim(root, "better_than_baseline: true, params_ratio: 8")
    key = record(root, config__recipe__recover__lr=1).stem
    record(root, seed=1, config__recipe__recover__lr=2)
    record(root, row="own-half", paper_epochs=None)
    tables(root)
    text = (root / "results/latex/some2020.tex").read_text()
    assert r"\caption{50 \% of A\_b \& \{C\} $\rightarrow$ $\pm$: " in text and f"% some2020/A: {key}" in text
    assert r"\toprule" in text and "recipe.recover.lr=1" in text and r"87.5 $\dagger$ / 25.0" in text
    shown = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert shown.isascii() and not re.search(r"(?<!\\)[_#&]", shown.replace(" & ", ""))
    assert shown.count(r"\begin{table}") == shown.count(r"\end{table}") == 2
    claims, own = shown.split(r"\end{table}")[:2]
    assert claims.count("& b ") == 1 and r"\emph{b}: baseline 160/160, recover 40/40; recipe.recover.lr=2" in claims
    assert "own-half" in own and "The paper's numbers: Table 1." in claims and " source " not in claims


# ---------------------------------------------------------------- rows that cannot run

def test_a_claim_stands_in_one_file(root, capsys):
    (root / "experiments/some2020/C.yaml").write_text((root / "experiments/some2020/A.yaml").read_text().replace(
        "experiments=some2020/A", "experiments=some2020/C"))
    tables(root, rc=1)
    assert capsys.readouterr().err.startswith("error: experiments/some2020/C.yaml: comment 'Someone 2020, Table 1, "
                                              "Net-A' is that of experiments/some2020/A.yaml too")


@pytest.mark.parametrize(("file", "twice"), [("some2020/B.yaml", CLAIM), ("papers.yaml", "some2020: {title: Other}\n")])
def test_a_name_given_twice_in_a_file(root, capsys, file, twice):
    record(root)
    (root / "experiments" / file).write_text((root / "experiments" / file).read_text() + twice)
    assert section(tables(root, rc=1), FULL)["A"][0]["our Δ"] == "-1.00"
    assert f"error: experiments/{file}: content cannot be read: " in (err := capsys.readouterr().err) and "dupl" in err


@pytest.fixture
def real(tmp_path):
    """The program's conf/ with one of its rows."""
    (tmp_path / "conf").symlink_to(REPOSITORY / "conf")
    (tmp_path / "experiments/li2017").mkdir(parents=True)
    (tmp_path / "experiments/papers.yaml").write_text("li2017: {title: A}\n")
    text = (REPOSITORY / "experiments/li2017/resnet56-A.yaml").read_text()
    (tmp_path / "experiments/li2017/resnet56-A.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize(("override", "where", "setting"), [
    ("seed=1", FULL, ""), ("data_dir=/elsewhere", FULL, ""), ("trainer.devices=2", CHANGED, "`trainer.devices=2`"),
    ("recipe.recover.optimizer.lr=0.5", CHANGED, "`recipe.recover.optimizer.lr=0.5`"),
    ("dataset.normalize=imagenet", CHANGED, "`dataset.normalize=imagenet`"),
    ("+method.allocation.new=1", CHANGED, "`method.allocation.new=1`"),
    ("trainer.precision=bf16-mixed", FULL, "`trainer.precision=bf16-mixed`"),
])
def test_a_run_with_anything_else_on_its_command_line_is_not_the_row(real, override, where, setting):
    with composing(real) as compose:
        config = OmegaConf.to_container(compose(["experiments=li2017/resnet56-A", override]), resolve=True)
    del config["experiment"], config["trainer"]["enable_model_summary"]              # an option newer than the record
    epochs = config["recipe"]["paper_epochs"]
    record(real, experiment="li2017/resnet56-A", model="resnet56", recipe="li2017", config=config, epochs=epochs,
           paper_epochs=epochs, seed=config["seed"])
    assert main(["tables", "--root", str(real)]) == 0
    line = section((real / "results/li2017.md").read_text(), where)["resnet56-A"][0]
    assert line["our Δ"] == "-1.00" and line.get("setting", "") == setting
    given = json.loads((file := next(real.glob("results/runs/*"))).read_text())
    given["baseline"]["source"] = given["config"]["model"]["weights"] = "net.th sha256:12"
    given["key"] = key_of(given["config"])
    file.unlink()
    file.with_stem(given["key"]).write_text(json.dumps(given))
    assert main(["tables", "--root", str(real)]) == 0
    whole = section((real / "results/li2017.md").read_text(), FULL)["resnet56-A"][0]
    assert ("our Δ" in whole) == (where == FULL or "normalize" in override)


@pytest.mark.parametrize(("old", "new", "told"), [
    ("override /method: l1", "override /method: l9", "method/l9"),
    ("dataset: {val_size: 0}", "dataset: {val_size: '${recipe.nothing}'}", "recipe.nothing"),
])
def test_a_row_that_does_not_compose_is_named_and_the_rest_is_built(real, capsys, old, new, told):
    text = (real / "experiments/li2017/resnet56-A.yaml").read_text()
    assert old in text
    (real / "experiments/li2017/bad.yaml").write_text(
        text.replace(old, new).replace("resnet56-A", "bad").replace("pruned-A", "pruned-bad"))
    before = os.environ.get("REPRUNE_ROOT")
    assert main(["tables", "--root", str(real)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: experiments/li2017/bad.yaml: does not compose with conf/ any more: ")
    assert told in error and os.environ.get("REPRUNE_ROOT") == before
    assert main(["tables", "--root", str(real)]) == 1 and capsys.readouterr().err.strip() == error   # as before
    assert set(section((real / "results/li2017.md").read_text(), FULL)) == {"bad", "resnet56-A"}


def test_what_was_composed_before_is_not_believed_when_a_file_has_changed(real, capsys):
    row, kept = real / "experiments/li2017/resnet56-A.yaml", real / "outputs/rows.json"
    assert main(["tables", "--root", str(real)]) == 0 and kept.is_file()
    text = row.read_text()
    row.write_text(text.replace("method: l1", "method: l9"))
    assert main(["tables", "--root", str(real)]) == 1 and "method/l9" in capsys.readouterr().err
    row.write_text(text)
    kept.write_text("{")
    assert main(["tables", "--root", str(real)]) == 0 and capsys.readouterr().err == ""
    (real / "conf").unlink()
    shutil.copytree(REPOSITORY / "conf", real / "conf")
    (real / "conf/method/l1.yaml").unlink()
    assert main(["tables", "--root", str(real)]) == 1 and "method/l1" in capsys.readouterr().err


def test_a_row_is_composed_and_nothing_that_it_names_is_imported(real, tmp_path, capsys, monkeypatch):
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    row = real / "experiments/li2017/resnet56-A.yaml"
    row.write_text(row.read_text().replace("method:\n", "method:\n  criterion: {_target_: hostile.Mine}\n", 1))
    assert "hostile" in row.read_text()
    main(["tables", "--root", str(real)])
    assert not (tmp_path / "ran").exists()
