"""The rows on ImageNet run from end to end on a few images: here one of them, of a small net, another every day; `make
imagenet-smoke` runs all.
"""

import re
from datetime import date

import imagenet_rows
import pytest
from imagenet_rows import ROOT, dry, rows, write

SMALL = {"resnet18", "resnet34", "mobilenet_v2"}
LONG = {"lasso", "thinet"}                                        # layer by layer


def today() -> str:
    """Every one of them in the end."""
    words = {row: set(re.findall(r"\w+", (ROOT / f"experiments/{row}.yaml").read_text())) for row in rows()}
    choice = [row for row, named in words.items() if named & SMALL and not named & {*LONG, "top5"}]
    return choice[date.today().toordinal() % len(choice)]


@pytest.mark.parametrize("row", [today()])
def test_a_row_on_imagenet_runs(row, tmp_path, one_thread):
    record = dry(row, write(tmp_path / "images"), tmp_path, "dataset.size=32")
    assert record["experiment"] == row and record["claim"] and record["dataset"] == "imagenet"
    assert record["config"]["recipe"]["name"] == "smoke"


def test_a_row_that_fails_is_listed_and_the_others_go_on(monkeypatch, capsys):
    def ran(row, images, out):
        assert len(list(images.glob("*/*/*.jpg"))) == 4 * 8
        if row.endswith("A"):
            raise ValueError("several\nlines")

    monkeypatch.setattr(imagenet_rows, "dry", ran)
    monkeypatch.setattr("sys.argv", ["imagenet_rows.py", "li2017/*"])
    assert imagenet_rows.main() == 1
    said = capsys.readouterr().out
    assert "li2017/resnet34-B: runs" in said and "2 of 3 rows on ImageNet run" in said
    assert "  FAILED li2017/resnet34-A: ValueError: several lines (" in said
