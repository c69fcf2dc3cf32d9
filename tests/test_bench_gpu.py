"""The benchmark for GPUs, at a small size on whatever device there is: its code must not wait for a GPU to be tried."""

import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import gpu  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = ["dataset=digits", "dataset.limit=128", "recipe.batch_size=64"]


@pytest.fixture
def configure():
    with gpu.configs(DEVICE) as configure:
        yield lambda *overrides: configure(*SMALL, *overrides)


@pytest.fixture
def digits(configure, monkeypatch):
    monkeypatch.setitem(gpu.NETS, "resnet8", lambda: gpu.models.resnet(8, in_channels=1))
    return instantiate(configure().dataset)


def test_the_ways_of_training_take_turns(configure, digits):
    ways = {way: overrides for way, overrides in gpu.WAYS.items() if "compiled" not in way}
    rows = gpu.ladder("resnet8", digits, configure, DEVICE, rounds=1, epochs=2, ways=ways)
    assert [row["what"] for row in rows] == list(ways)
    assert rows[0]["times faster"] == 1
    assert all(row["images/s"] == pytest.approx(128 / row["epoch, s"], rel=0.01) for row in rows)


def test_precisions_are_compared_on_held_out_images(configure, digits):
    full, half = gpu.seeds("resnet8", digits, configure, DEVICE, n=2, epochs=3)
    assert 0 < full["top-1"] <= 100 and 0 < half["top-1"] <= 100


def test_the_limit_of_a_chip():
    """VGG-16 has 313.20 M multiply-adds for an image; an epoch takes three passes of two operations each."""
    found = gpu.limit("vgg16", DEVICE, images=1000, size=256)
    assert found["arithmetic, s"] * found["Tflop/s"] == pytest.approx(6 * 313.20e6 * 1000 / 1e12, rel=1e-3)
    assert found["memory, s"] > 0


def test_what_was_not_measured_says_so():
    assert {target["measured"] for target in gpu.targets([])} == {"not measured"}
    assert torch.cuda.is_available() or gpu.missing() == "this machine has no GPU"
