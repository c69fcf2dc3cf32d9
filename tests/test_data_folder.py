"""Trees of big images: seeded whatever the number of workers, equal to torchvision's recipe, clear errors.

And TinyImageNet's tree, whose images are read into memory.
"""

import shutil

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as T
from trees import photos, small, tiny, write_tiny, write_tree

from reprune.data.normalize import IMAGENET
from reprune.errors import UserError


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


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


WHOLE = {"train": 24, "val": 8, "source": "get it THERE"}


@pytest.mark.parametrize(("gone", "message"), [
    ("", None),
    ("val", r"has no val/; set dataset.data_dir to .*; get it THERE$"),
    ("train/bee", r"is not complete: train/ holds 12 images of 24, in 1 classes of 2; get it THERE, or set "
                  r"dataset.complete=null"),
    ("train/ant/0.png val/bee/1.png", r"train/ holds 23 images of 24, in 2 classes of 2; val/ holds 7 images of 8,"),
    ("val/bee/*", r"val/ holds 4 images of 8, in 1 classes of 2 \(bee has none\)"),
    ("val/*/", r"Couldn't find any class folder in .*val. \(in .*\); get it THERE$"),
])
def test_a_known_set_that_is_half_there_says_what_is_missing(gone, message, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    for pattern in gone.split():
        for path in (tmp_path / "tree").glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if message is None:
        photos(tmp_path / "tree", complete=WHOLE)
    else:
        with pytest.raises(UserError, match=message) as error:
            photos(tmp_path / "tree", complete=WHOLE)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [photos, small])
def test_the_test_images_may_lie_in_another_folder(read, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    for path in (tmp_path / "tree").glob("*/*/*.png"):
        Image.open(path).resize((16, 16)).save(path)
    before = [list(loader) for data in [read(tmp_path / "tree")] for loader in (data.test(4), data.train(4, 0))]
    (tmp_path / "tree/val").rename(tmp_path / "tree/test")
    after = read(tmp_path / "tree", test="test")
    assert equal(before[0], after.test(4)) and equal(before[1], after.train(4, 0))
    with pytest.raises(UserError, match="has no val/"):
        read(tmp_path / "tree")


def test_small_images_in_memory_are_those_of_the_files(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    for path in (tmp_path / "tree").glob("*/*/*.png"):
        Image.open(path).resize((18, 18)).save(path)              # what test images of 16 pixels are resized to
    in_memory, big = small(tmp_path / "tree", size=18), photos(tmp_path / "tree")
    assert all(torch.equal(x[..., 1:-1, 1:-1], u) and torch.equal(y, v)
               for (x, y), (u, v) in zip(in_memory.test(3), big.test(3), strict=True))
    with pytest.raises(UserError, match=r"/train/ant/0.png has 18x18 pixels, not 16x16"):
        small(tmp_path / "tree", size=16)


# ---- TinyImageNet

@pytest.fixture
def tiny_tree(tmp_path):
    return write_tiny(tmp_path)


def levels(loader):
    """(grey level of the image's centre in steps of 8, label) of every image of a loader."""
    (mean, *_), (std, *_) = IMAGENET
    return [(round((float(image[0, 32, 32]) * std + mean) * 255 / 8), int(label))
            for x, y in loader for image, label in zip(x, y, strict=True)]


def test_tinyimagenet_labels_follow_the_sorted_wnids_and_the_annotations(tiny_tree):
    data = tiny(tiny_tree)
    for loader in (data.train(5, 0), data.plain(5, 0), data.val(4), data.test(4)):
        assert all(x.shape[1:] == (3, 64, 64) and x.dtype == torch.float32 for x, _ in loader)
        assert all(level // 8 == label for level, label in levels(loader))
    assert [label for _, label in levels(data.test(4))] == [2, 2, 0, 0, 1, 1]       # the order of the annotations


def test_tinyimagenet_holds_out_training_images_and_tests_on_val(tiny_tree):
    data = tiny(tiny_tree)
    train, held = levels(data.train(5, 0)), levels(data.val(4))
    assert (len(train), len(held), len(levels(data.test(4)))) == (18, 6, 6)
    assert not set(train) & set(held) and len(set(train + held)) == 24
    assert [len(part) for part in tiny(tiny_tree, limit=4).parts] == [4, 4, 4]


def spoil(folder, what):
    root = folder / "tiny-imagenet-200"
    if what == "folder":
        shutil.rmtree(root)
    elif what == "annotations":
        (root / "val" / "val_annotations.txt").unlink()
    elif what == "wnid":
        (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\t0\t0\t62\t62\n")
    elif what == "nothing":
        (root / "val" / "val_annotations.txt").write_text("")
    elif what == "empty":
        shutil.rmtree(root / "train" / "n02" / "images")
    elif what == "damaged":
        (root / "train" / "n02" / "images" / "n02_0.JPEG").write_bytes(b"no image")
    elif what == "size":
        Image.new("RGB", (32, 64)).save(root / "val" / "images" / "val_1.JPEG")


@pytest.mark.parametrize(("what", "message"), [
    ("folder", r"tiny-imagenet-200/train is missing; unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip into .*"
               "data_dir=FOLDER or the environment variable DATA_DIR"),
    ("annotations", "val_annotations.txt is missing; unpack http"),
    ("wnid", "no class of train/ in the line 'val_0.JPEG.*n99"),
    ("nothing", "tiny-imagenet-200 is empty; unpack http"),
    ("empty", "n02 holds no images"),
    ("damaged", "cannot read image .*n02_0.JPEG"),
    ("size", "val_1.JPEG has 32x64 pixels, not 64x64"),
])
def test_a_tinyimagenet_that_is_absent_or_spoiled_is_named(what, message, tiny_tree):
    spoil(tiny_tree, what)
    with pytest.raises(UserError, match=message) as error:
        tiny(tiny_tree)
    assert "\n" not in str(error.value) and str(tiny_tree) in str(error.value)


def test_tinyimagenet_knobs_must_fit_the_images(tiny_tree):
    with pytest.raises(UserError, match="classes is 200, but the images have classes 3"):
        tiny(tiny_tree, classes=200)
    with pytest.raises(UserError, match="size is 32, but the images have size 64"):
        tiny(tiny_tree, size=32)
