"""Properties of the data path: what is random is seeded, the parts are disjoint, pixels are what torchvision gives."""

import gzip
import os
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import utils as tv_utils

from reprune.data import cifar10, digits, fashion_mnist, imagefolder, svhn
from reprune.data.normalize import IMAGENET, Normalize, moments
from reprune.data.split import split, stratified
from reprune.data.tensor import Images, TensorData
from reprune.errors import UserError

CONF = Path(__file__).parent.parent / "conf" / "dataset"
SMALL = {"normalize": "own", "val_size": 200, "split_seed": 0, "limit": None}
DIGITS = {**SMALL, "name": "digits", "channels": 1, "classes": 10, "size": 32, "augment": {"pad": 2}}
HAS_CIFAR = (Path(os.environ.get("DATA_DIR", "")) / "cifar-10-batches-py").exists() and "DATA_DIR" in os.environ


def colour(n=101, size=8, pad=2, flip=True, val_size=10, normalize=((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), limit=None):
    """A set of random RGB images whose label is the row number, so that a batch tells which images it holds."""
    pixels = torch.randint(256, (n, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    rows = torch.arange(n)
    parts = split("colour", torch.zeros_like(rows), n, val_size, 0, limit)
    data = TensorData(Images(pixels, rows, pad), Images(pixels, rows), flip, name="colour", channels=3, classes=n,
                      size=size, mean=normalize[0], std=normalize[1], parts=parts)
    return data, pixels


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """train/ with 12 and val/ with 4 images of unequal sizes in each of two classes."""
    root, rng = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    for part, n in {"train": 12, "val": 4}.items():
        for label in ("bee", "ant"):
            (root / part / label).mkdir(parents=True)
            for i in range(n):
                image = rng.integers(256, size=(30 + i, 40, 3), dtype=np.uint8)
                Image.fromarray(image).save(root / part / label / f"{i}.png")
    return root


def photos(tree, **changes):
    knobs = {"name": "tree", "channels": 3, "classes": 2, "size": 16, "data_dir": str(tree), "normalize": "imagenet",
             "val_size": 6, "split_seed": 0, "limit": None, "workers": 0}
    return imagefolder(**{**knobs, **changes})


def labels(loader):
    return torch.cat([y for _, y in loader])


def equal(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(first, second, strict=True)
    )


# ---- randomness

@pytest.mark.parametrize("kind", ["tensor", "folder"])
def test_seed_and_epoch_determine_the_batches(kind, tree):
    data = colour()[0] if kind == "tensor" else photos(tree)
    loader = data.train(8, seed=3)
    epochs = [list(loader), list(loader)]  # nobody sets the epoch: it counts up by itself
    assert not equal(*epochs)
    again = data.train(8, seed=3)
    again.sampler.set_epoch(1)
    assert equal(again, epochs[1])
    again.sampler.set_epoch(0)
    assert equal(again, epochs[0])
    assert not equal(data.train(8, seed=4), epochs[0])


def test_an_iterator_belongs_to_the_epoch_in_which_it_was_made():
    loader = colour()[0].train(8, seed=0)
    first, second = iter(loader), iter(loader)
    late, early = list(second), list(first)
    loader.sampler.set_epoch(0)
    assert equal(early, loader) and equal(late, loader)


def test_worker_count_changes_nothing(tree):
    alone, two = (photos(tree, workers=n).train(5, seed=1) for n in (0, 2))
    assert equal(alone, two) and equal(alone, two)  # two epochs
    assert equal(photos(tree).test(3), photos(tree, workers=2).test(3))


@pytest.mark.parametrize("kind", ["tensor", "folder"])
def test_global_random_state_is_neither_read_nor_changed(kind, tree):
    def batches():
        data = colour()[0] if kind == "tensor" else photos(tree)
        return [b for loader in (data.train(8, 0), data.plain(8, 0), data.val(8), data.test(8)) for b in loader]

    torch.manual_seed(1)
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = batches()
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(np_state, np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(2)
    assert equal(first, batches())


# ---- parts

@pytest.mark.parametrize("limit", [None, 20])
def test_parts_are_disjoint_and_complete(limit):
    data, _ = colour(limit=limit)
    train, val = labels(data.train(8, 0)).tolist(), labels(data.val(8)).tolist()
    assert len(set(train)) == len(train) and not set(train) & set(val)
    assert sorted(labels(data.plain(8, 0)).tolist()) == sorted(data.parts.train.tolist())
    if limit is None:
        assert sorted(data.parts.train.tolist() + val) == list(range(101))
        assert labels(data.test(8)).tolist() == list(range(101))
    else:
        assert (len(train), len(val), len(labels(data.test(8)))) == (20, 10, 20)


def test_no_held_out_part_leaves_the_whole_training_set():
    data, _ = colour(val_size=0)
    assert data.parts.train.tolist() == list(range(101)) == sorted(labels(data.train(9, 0)).tolist())
    with pytest.raises(UserError, match="selection needs held-out data; set dataset.val_size"):
        data.val(8)


def test_held_out_part_is_stratified_and_depends_on_its_seed_only():
    y = torch.arange(1000) % 10
    rest, held = stratified(y, 105, seed=0)
    assert set(y[held].bincount().tolist()) <= {10, 11}
    assert torch.equal(torch.cat([rest, held]).sort().values, torch.arange(1000))
    assert torch.equal(held, stratified(y, 105, seed=0)[1]) and not torch.equal(held, stratified(y, 105, seed=1)[1])


def test_plain_draws_without_replacement_from_train():
    data, _ = colour()
    drawn = labels(data.plain(8, seed=0, n=30)).tolist()
    assert len(set(drawn)) == 30 and set(drawn) <= set(data.parts.train.tolist())
    assert drawn == labels(data.plain(8, seed=0, n=30)).tolist() != labels(data.plain(8, seed=1, n=30)).tolist()
    assert equal(*[data.plain(8, seed=0, n=30)] * 2)  # the same at every pass
    for n in (0, 92):
        with pytest.raises(UserError, match="cannot draw"):
            data.plain(8, seed=0, n=n)


SIZES = [(8, [8] * 11 + [3]), (45, [45, 45]), (91, [91]), (200, [91]), (1, [1] * 91)]


@pytest.mark.parametrize("batch_size, sizes", SIZES)
@pytest.mark.parametrize("kind", ["tensor", "folder"])
def test_last_batch_is_kept_unless_it_is_a_single_image(kind, batch_size, sizes, tree):
    if kind == "tensor":
        loader = colour()[0].train(batch_size, 0)
    else:
        loader = photos(tree, val_size=5, size=2).train(batch_size, 0)  # 24 - 5 = 19 images
        sizes = {8: [8, 8, 3], 45: [19], 91: [19], 200: [19], 1: [1] * 19}[batch_size]
    assert len(loader) == len(sizes)
    assert [len(y) for _, y in loader] == sizes


def test_folder_drops_a_single_last_image(tree):
    loader = photos(tree, val_size=5, size=2).train(6, 0)  # 19 = 6 + 6 + 6 + 1
    assert [len(y) for _, y in loader] == [6, 6, 6] and len(loader) == 3


# ---- pixels

def test_crops_are_sub_windows_of_the_padded_image():
    _, pixels = colour(size=8)
    pad, n = 3, len(pixels)
    images = Images(pixels, torch.arange(n), pad)
    rng = torch.Generator().manual_seed(0)
    rows, mirrored = torch.randperm(n, generator=rng), torch.randint(2, (n,), generator=rng)
    dy, dx = torch.randint(2 * pad + 1, (2, n), generator=rng)
    padded = np.pad(pixels.numpy(), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    fast = images.crop(images.start(rows, dy, dx), mirrored)
    for i in range(n):
        slow = padded[rows[i], dy[i] : dy[i] + 8, dx[i] : dx[i] + 8]
        assert np.array_equal(fast[i].numpy(), slow[:, ::-1] if mirrored[i] else slow)
    last, far = torch.tensor([n - 1]), torch.tensor([2 * pad])
    assert np.array_equal(images.crop(images.start(last, far, far))[0].numpy(), padded[-1, -8:, -8:])


def test_training_uses_every_offset_and_both_mirrorings_per_image():
    data, pixels = colour(pad=1, n=103, val_size=3, normalize=((0.0,) * 3, (1.0,) * 3))
    padded = np.pad(pixels.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = set()
    for x, y in data.train(25, seed=0):
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        for image, row in zip((x * 255).round().byte().permute(0, 2, 3, 1).numpy(), y.tolist(), strict=True):
            windows = {(dy, dx, m): padded[row, dy : dy + 8, dx : dx + 8][:, :: 1 - 2 * m]
                       for dy in range(3) for dx in range(3) for m in range(2)}
            found = [where for where, window in windows.items() if np.array_equal(window, image)]
            assert len(found) == 1
            seen.add(found[0])
    assert len(seen) == 18  # 9 offsets x 2


def test_normalised_pixels_equal_torchvision_transforms():
    data, pixels = colour()
    reference = T.Compose([T.ToTensor(), T.Normalize(data.mean, data.std)])
    expected = torch.stack([reference(Image.fromarray(p.numpy())) for p in pixels])
    for loader in (data.test(8), data.val(8), data.plain(8, 0)):
        for x, y in loader:
            torch.testing.assert_close(x, expected[y], rtol=0, atol=2e-6)


def test_augmentation_has_the_distribution_of_torchvision():
    """Mean over many crops of one image: both recipes average the same windows."""
    data, pixels = colour(n=2, pad=2, val_size=0, normalize=((0.0,) * 3, (1.0,) * 3))
    image = Image.fromarray(pixels[0].numpy())
    recipe = T.Compose([T.RandomCrop(8, 2), T.RandomHorizontalFlip(), T.ToTensor()])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.stack([recipe(image) for _ in range(2000)]).mean(0)
    loader = data.train(2, seed=0)
    ours = torch.stack([x[y == 0][0] for _ in range(2000) for x, y in loader]).mean(0)
    assert (ours - theirs).abs().max() < 0.05


def test_batches_do_not_share_memory_with_the_dataset():
    data, _ = colour()
    before = list(data.test(8))
    for x, y in data.test(8):
        x.zero_(), y.zero_()
    assert equal(before, data.test(8))


def test_moments_equal_numpy():
    _, pixels = colour()
    mean, std = moments(pixels)
    np.testing.assert_allclose(mean, (pixels / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(std, (pixels / 255).flatten(0, 2).std(0), atol=1e-4)


# ---- the sets

@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda f: f.stem)
def test_every_config_is_complete_and_every_knob_documented(file):
    node = OmegaConf.load(file)
    assert node.name == file.stem and node._target_ == f"reprune.data.{file.stem}"
    assert {"channels", "classes", "size", "data_dir", "normalize", "val_size", "split_seed", "limit"} <= set(node)
    for line in file.read_text().splitlines():
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


def test_fashion_mnist_reads_idx_files_and_adds_a_border(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in {"train": 30, "t10k": 20}.items():
        header = bytes([0, 0, 8, 3]) + b"".join(k.to_bytes(4, "big") for k in (n, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + bytes([200]) * (n * 28 * 28))
        header = bytes([0, 0, 8, 1]) + n.to_bytes(4, "big")
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(range(10)) * (n // 10))
    knobs = {**DIGITS, "name": "fashion_mnist", "data_dir": str(tmp_path), "val_size": 10, "augment": None}
    data = fashion_mnist(**knobs)
    x = next(iter(data.test(20)))[0]
    assert x.shape == (20, 1, 32, 32) and (x[..., 2:30, 2:30] > 0).all() and (x[..., :2] < 0).all()
    with pytest.raises(UserError, match="even size from 28 up"):
        fashion_mnist(**{**knobs, "size": 24})


def test_imagefolder_test_part_equals_torchvision(tree):
    from torchvision.datasets import ImageFolder

    data = photos(tree)
    recipe = T.Compose([T.Resize(18), T.CenterCrop(16), T.ToTensor(), T.Normalize(*IMAGENET)])
    u, v = next(iter(DataLoader(ImageFolder(tree / "val", recipe), 8)))
    x, y = next(iter(data.test(8)))
    torch.testing.assert_close(x, u, rtol=0, atol=2e-6)
    assert torch.equal(y, v)
    assert [len(part) for part in data.parts] == [18, 6, 8]
    assert len(photos(tree, normalize="own").mean) == 3


# ---- bad input: one clear line each

@pytest.mark.parametrize("knobs, message", [
    ({"normalize": "mine"}, "normalize is 'mine'; use own or imagenet"),
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


def test_bad_batch_size_and_nothing_to_train_on():
    data, _ = colour()
    with pytest.raises(UserError, match="batch size must be at least 1"):
        data.train(0, seed=0)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(tv_utils, "_urlretrieve", refuse)


COLOUR = {**SMALL, "channels": 3, "classes": 10, "size": 32, "augment": None}


@pytest.mark.parametrize("dataset, file", [(cifar10, "cifar-10-batches-py"), (svhn, "train_32x32.mat"),
                                           (fashion_mnist, "FashionMNIST/raw")])
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


def test_imagefolder_errors(tree, tmp_path):
    with pytest.raises(UserError, match=r"has no train/ and no val/; set data_dir to a folder with train/"):
        photos(tree / "train")  # a plain ImageFolder
    with pytest.raises(UserError, match=r"has 2 classes, the config says 10; set dataset.classes=2"):
        photos(tree, classes=10)
    with pytest.raises(UserError, match="channels must be 3"):
        photos(tree, channels=1)
    with pytest.raises(UserError, match="0 to 22 can be held out"):
        photos(tree, val_size=23)
    for folder in ("train/ant", "train/bee", "val/ant", "val/cat"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "0.png")
    with pytest.raises(UserError, match="differ in classes: bee, cat"):
        photos(tmp_path)
    (tmp_path / "val" / "cat" / "0.png").unlink()
    with pytest.raises(UserError, match="cat"):
        photos(tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(workers, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "ant").mkdir(parents=True)
        for i in range(4):
            (tmp_path / part / "ant" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read image .*\.png") as error:
        list(photos(tmp_path, classes=1, val_size=0, workers=workers).test(4))
    assert "\n" not in str(error.value)
