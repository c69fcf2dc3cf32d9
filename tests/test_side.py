"""Methods side by side at equal budgets, and the page of all methods."""

from pathlib import Path

import pytest
from project import project, record, tables

from reprune.results.figures.files import build

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def root(tmp_path):
    project(tmp_path)
    (tmp_path / "experiments/papers.yaml").write_text("some2020: {title: Side by side, compare: true}\n")
    return tmp_path


def ran(root, method, kept, top1, seed=0, epochs=0, bn=False, over=0):
    config = {"model": {"name": "net"}, "dataset": {"name": "cifar10", "limit": None}, "seed": seed,
              "recipe": {"recover": {"epochs": epochs}}, "trainer": {"precision": "32-true"},
              "method": {"name": method, "criterion": {"n_samples": 512 if method == "hrank" else None},
                         "allocation": {"macs": kept}, **({"repair": {"recalibrate": {"images": 9}}} if bn else {})}}
    record(root, method=method, config=config, seed=seed, top1=top1, base=90.0, pruned__macs=2000 * (kept + over),
           epochs__recover=epochs, epochs__sparse=0, env__device="cpu", env__device_name="some")


def test_cells_are_means_over_seeds_and_what_is_not_above_random_is_marked_and_told(root):
    for seed, top1 in ((0, 50.0), (1, 52.0)):
        ran(root, "random", 0.5, top1, seed)
    ran(root, "random", 0.7, 80.0)
    ran(root, "hrank", 0.5, 51.0)
    ran(root, "hrank", 0.7, 81.0)
    ran(root, "l1", 0.5, 60.0)
    ran(root, "l1", 0.5, 85.0, bn=True, over=0.02)
    ran(root, "l1", 0.5, 89.0, epochs=5)
    page = tables(root)
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in page.splitlines() if line.startswith("|")}
    assert rows["method"] == ["cut alone", "new BN statistics", "5 epochs of recovery", "looks at"]
    assert rows["random"][0] == "80.00 / 51.00 ± 1.41"
    assert rows["hrank"] == ["81.00 / 51.00 ‡", "", "", "512 images"]
    assert rows["l1"] == ["– / 60.00", "– / 85.00 §", "– / 89.00", "weights"]
    assert "**Not above random filters:** hrank (cut alone at 50 %)." in page
    assert "with 70 / 50 % of the MACs left" in page and "The baseline is\n90.00" in page


def test_where_all_are_above_random_the_page_says_so(root):
    ran(root, "random", 0.5, 50.0)
    ran(root, "l1", 0.5, 60.0)
    assert "**All are above random filters.**" in tables(root)


def test_the_figure_has_a_panel_for_each_way_of_mending_and_a_line_for_each_method(root):
    for kept, top1 in ((0.7, 85.0), (0.5, 70.0)):
        ran(root, "random", kept, top1 - 5)
        ran(root, "l1", kept, top1)
    ran(root, "l1", 0.5, 88.0, bn=True)
    errors = []
    (figure,) = build(root, errors)
    assert not errors and figure.kind == "budgets"
    assert {panel["title"]: {line["series"]: [tuple(p) for p in line["points"]] for line in panel["lines"]}
            for panel in figure.data["panels"]} == {
        "A: cut alone": {"l1": [(50, 70.0, None), (70, 85.0, None)], "random": [(50, 65.0, None), (70, 80.0, None)]},
        "A: new BN statistics": {"l1": [(50, 88.0, None)]}}
    assert figure.svg().count("<svg") == 1


def test_nothing_has_run_is_said(root):
    assert "Nothing has run yet." in tables(root)


def test_the_committed_page_of_methods_shows_every_method():
    page = (REPOSITORY / "docs/methods.md").read_text()
    methods = [file.stem for file in sorted((REPOSITORY / "conf/method").glob("*.yaml")) if file.stem != "baseline"]
    for method in methods:
        assert f"\n## {method}\n" in page and f"`reprune run method={method}`" in page
