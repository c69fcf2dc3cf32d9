"""Trees of big images: seeded whatever the number of workers, equal to torchvision's recipe, clear errors."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T

from reprune.data import imagefolder
from reprune.data.normalize import IMAGENET
from reprune.errors import UserError


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


def equal(first, second):
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(first, second, strict=True)
    )


def test_seed_and_epoch_determine_the_batches(tree):
    loader = photos(tree).train(8, seed=3)
    epochs = [list(loader), list(loader)]
    assert not equal(*epochs)
    again = photos(tree).train(8, seed=3)
    again.sampler.set_epoch(1)
    assert equal(again, epochs[1]) and not equal(photos(tree).train(8, seed=4), epochs[0])


def test_worker_count_changes_nothing(tree):
    alone, two = (photos(tree, workers=n).train(5, seed=1) for n in (0, 2))
    assert equal(alone, two) and equal(alone, two)  # two epochs
    assert equal(photos(tree).test(3), photos(tree, workers=2).test(3))


def test_global_random_state_is_neither_read_nor_changed(tree):
    def batches():
        data = photos(tree, normalize="own")
        return [b for loader in (data.train(8, 0), data.plain(8, 0), data.val(8), data.test(8)) for b in loader]

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = batches()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert equal(first, batches())


def test_a_single_last_image_is_dropped(tree):
    loader = photos(tree, val_size=5, size=2).train(6, 0)  # 19 = 6 + 6 + 6 + 1
    assert [len(y) for _, y in loader] == [6, 6, 6] and len(loader) == 3


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
