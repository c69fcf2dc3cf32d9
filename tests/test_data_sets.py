"""The small datasets: complete configs, digits out of the box, equal to torchvision's, one clear line for bad input."""

import gzip
import os
import urllib.error
from pathlib import Path

import pytest
import torch
from batches import equal, labels
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import utils as tv_utils

from reprune.data import cifar10, digits, fashion_mnist, mnist, monks, svhn, xor
from reprune.data.normalize import IMAGENET, Normalize, constants
from reprune.errors import UserError

CONF = Path(__file__).parent.parent / "conf" / "dataset"
SMALL = {"normalize": "own", "val_size": 200, "split_seed": 0, "limit": None}
DIGITS = {**SMALL, "name": "digits", "channels": 1, "classes": 10, "size": 32, "augment": {"pad": 2}}
BUILDERS = {**dict.fromkeys(("imagenet", "imagenette", "imagewoof"), "imagefolder"), "cifar100_png": "smallfolder"}
HAS_CIFAR = (Path(os.environ.get("DATA_DIR", "")) / "cifar-10-batches-py").exists() and "DATA_DIR" in os.environ


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda f: f.stem)
def test_every_config_is_complete_and_every_knob_documented(file):
    node, builder = OmegaConf.load(file), BUILDERS.get(file.stem, file.stem)
    base = [OmegaConf.load(CONF / f"{name}.yaml") for name in node.pop("defaults", []) if name != "_self_"]
    node = OmegaConf.merge(*base, node)
    assert node.name == file.stem.removesuffix("_png") and node._target_ == f"reprune.data.{builder}"
    assert {"channels", "classes", "size", "data_dir", "normalize", "val_size", "split_seed", "limit"} <= set(node)
    for line in file.read_text().splitlines() if not base else ():           # else they stand in the other file
        assert "#" in line or line.startswith(("_target_", "augment:")), f"no comment on: {line}"


def test_digits_out_of_the_box(tmp_path):
    conf = OmegaConf.create({"data_dir": str(tmp_path / "none"), "dataset": OmegaConf.load(CONF / "digits.yaml")})
    data = instantiate(conf.dataset)
    assert (data.name, data.channels, data.classes, data.size) == ("digits", 1, 10, 32)
    x, y = next(iter(data.train(64, seed=0)))
    assert x.shape == (64, 1, 32, 32) and y.shape == (64,)
    assert len(labels(data.test(64))) == 359 and len(labels(data.val(64))) == 200
    everything = torch.cat([x for x, _ in data.plain(500, 0)])
    assert abs(float(everything.mean())) < 0.02 and abs(float(everything.std()) - 1) < 0.02
    assert not (tmp_path / "none").exists()  # it needs no file


def test_digits_keep_their_test_set_whatever_the_split_seed():
    first, other = digits(**DIGITS), digits(**{**DIGITS, "split_seed": 7})
    assert equal(first.test(100), other.test(100)) and not equal(first.val(100), other.val(100))


def test_a_centroid_classifier_reads_the_digits():
    """Images and labels belong together: the nearest class mean is right for most of the test set."""
    data = digits(**DIGITS)
    x, y = next(iter(data.plain(2000, 0)))
    means = torch.stack([x[y == c].mean(0).flatten() for c in range(10)])
    x, y = next(iter(data.test(2000)))
    assert (torch.cdist(x.flatten(1), means).argmin(1) == y).float().mean() > 0.85


def test_half_makes_pixels_of_minus_one_to_one():
    data = digits(**{**DIGITS, "normalize": "half"})
    assert (data.mean, data.std) == ((0.5,), (0.5,))
    assert constants("cifar10", "half", 3, None) == ((0.5,) * 3, (0.5,) * 3)


def test_imagenet_constants():
    assert (digits(**{**DIGITS, "normalize": "imagenet"}).mean) == (0.449,)  # one channel: mean over the three
    assert Normalize(*IMAGENET, 4, "cpu")(torch.zeros(2, 4, 4, 3, dtype=torch.uint8)).shape == (2, 3, 4, 4)


@pytest.mark.skipif(not HAS_CIFAR, reason="set DATA_DIR to a folder with cifar-10-batches-py")
def test_cifar10_equals_torchvision():
    from torchvision.datasets import CIFAR10

    conf = OmegaConf.create({"data_dir": os.environ["DATA_DIR"], "dataset": OmegaConf.load(CONF / "cifar10.yaml")})
    data = instantiate(conf.dataset)
    assert [len(part) for part in data.parts] == [45_000, 5_000, 10_000]
    recipe = T.Compose([T.ToTensor(), T.Normalize(data.mean, data.std)])
    reference = CIFAR10(conf.data_dir, train=False, transform=recipe)
    x, y = next(iter(data.test(256)))
    u, v = next(iter(DataLoader(reference, 256)))
    torch.testing.assert_close(x, u, rtol=0, atol=2e-6)
    assert torch.equal(y, v)
    x, _ = next(iter(data.plain(10_000, 0)))
    assert float(x.mean().abs()) < 0.02 and abs(float(x.std()) - 1) < 0.02


@pytest.mark.parametrize(("dataset", "folder"), [(fashion_mnist, "FashionMNIST"), (mnist, "MNIST")])
def test_mnist_and_its_likes_read_idx_files_and_add_a_border(dataset, folder, tmp_path):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for part, n in {"train": 30, "t10k": 20}.items():
        header = bytes([0, 0, 8, 3]) + b"".join(k.to_bytes(4, "big") for k in (n, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + bytes([200]) * (n * 28 * 28))
        header = bytes([0, 0, 8, 1]) + n.to_bytes(4, "big")
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(range(10)) * (n // 10))
    knobs = {**DIGITS, "name": dataset.__name__, "data_dir": str(tmp_path), "val_size": 10, "augment": None}
    data = dataset(**knobs)
    x = next(iter(data.test(20)))[0]
    assert x.shape == (20, 1, 32, 32) and (x[..., 2:30, 2:30] > 0).all() and (x[..., :2] < 0).all()
    with pytest.raises(UserError, match="even size from 28 up"):
        dataset(**{**knobs, "size": 24})


def test_monks_problems_are_their_rules():
    """Shares of positive cases as published: 216, 142 and 228 of 432; 124, 169 and 122 cases to train on."""
    knobs = {**SMALL, "name": "monks", "channels": 17, "classes": 2, "size": 1, "val_size": 0, "normalize": "half",
             "augment": None}
    for problem, positive, trained in ((1, 216, 124), (2, 142, 169), (3, 228, 122)):
        data = monks(problem=problem, **knobs)
        x, y = next(iter(data.test(500)))
        assert x.shape == (432, 17, 1, 1) and int(y.sum()) == positive and len(data.parts.train) == trained
        assert x.unique().tolist() == [-1, 1] and (x > 0).sum(1).unique().tolist() == [6]
        answers = {tuple(case.flatten().tolist()): int(label) for case, label in zip(x, y, strict=True)}
        assert len(answers) == 432
        seen = [(tuple(case.flatten().tolist()), int(label)) for xs, ys in data.plain(500, 0)
                for case, label in zip(xs, ys, strict=True)]
        assert sum(answers[case] != label for case, label in seen) == (6 if problem == 3 else 0)
        assert len({case for case, _ in seen}) == trained
    one = (1, 1, 2, 1, 4, 2)                                      # head = body: positive in 1; three 1s; jacket 4
    case = tuple(1.0 if v == value else -1.0 for value, n in zip(one, (3, 3, 2, 3, 4, 2), strict=True)
                 for v in range(1, n + 1))
    for problem, label in ((1, 1), (2, 0), (3, 0)):
        x, y = next(iter(monks(problem=problem, **knobs).test(500)))
        assert [int(t) for c, t in zip(x, y, strict=True) if tuple(c.flatten().tolist()) == case] == [label]
    with pytest.raises(UserError, match="problem is 4; use 1, 2 or 3"):
        monks(problem=4, **knobs)


def test_xor_has_four_cases():
    data = xor(**{**SMALL, "name": "xor", "channels": 2, "classes": 2, "size": 1, "val_size": 0, "normalize": "half",
             "augment": None})
    x, y = next(iter(data.test(10)))
    assert x.flatten(1).tolist() == [[-1, -1], [-1, 1], [1, -1], [1, 1]] and y.tolist() == [0, 1, 1, 0]
    assert len(data.parts.train) == 4


# ---- bad input: one clear line each

@pytest.mark.parametrize("knobs, message", [
    ({"normalize": "mine"}, "normalize is 'mine'; use own, imagenet or half"),
    ({"val_size": -1}, "val_size is -1"),
    ({"val_size": 1438}, "0 to 1436 can be held out"),
    ({"val_size": 0.1}, "val_size is 0.1"),
    ({"limit": 0}, "limit is 0"),
    ({"size": 30}, "size is 30"),
    ({"channels": 3}, "channels is 3, but the images have channels 1"),
    ({"classes": 100}, "classes is 100, but the images have classes 10"),
    ({"augment": {"pad": -1}}, "augment.pad is -1"),
    ({"augment": {"rotate": 3}}, r"unknown augment \['rotate'\]"),
])
def test_bad_knobs(knobs, message):
    with pytest.raises(UserError, match=message) as error:
        digits(**{**DIGITS, **knobs})
    assert "\n" not in str(error.value) and "dataset digits" in str(error.value)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(tv_utils, "_urlretrieve", refuse)


COLOUR = {**SMALL, "channels": 3, "classes": 10, "size": 32, "augment": None}


@pytest.mark.parametrize("dataset, file", [(cifar10, "cifar-10-batches-py"), (svhn, "train_32x32.mat"),
                                           (fashion_mnist, "FashionMNIST/raw"), (mnist, "MNIST/raw")])
def test_missing_files_say_where_and_how(dataset, file, tmp_path, no_network):
    root = tmp_path / "absent"
    with pytest.raises(UserError, match="is missing and the download failed") as error:
        dataset(name=dataset.__name__, data_dir=str(root), **COLOUR)
    message = str(error.value)
    assert str(root / file) in message and "data_dir=" in message and "DATA_DIR" in message and "\n" not in message
    assert not root.exists()  # nothing half-made is left


def test_damaged_files_are_refused(tmp_path, no_network):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / file).write_bytes(gzip.compress(b"not CIFAR"))
    with pytest.raises(UserError, match="is damaged") as error:
        cifar10(name="cifar10", data_dir=str(tmp_path), **COLOUR)
    assert "\n" not in str(error.value) and (folder / "test_batch").exists()  # the user's files stay
