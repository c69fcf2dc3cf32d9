"""Images and folders that cannot be read end in one line that names them."""

import io
import re
import shutil
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from trees import photos, tiny, write_tiny, write_tree

from reprune.data import cifar10, fashion_mnist, svhn
from reprune.data.decode import pixels
from reprune.data.files import photo
from reprune.data.normalize import IMAGENET
from reprune.errors import UserError


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(autouse=True)
def short_farewell(monkeypatch):
    """How long torch waits for a worker whose images are not read to the end, here some fifty times."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)


@pytest.fixture
def tiny_tree(tmp_path):
    return write_tiny(tmp_path)


def bomb(width, height):
    """A PNG of some bytes that says it has many pixels."""
    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0])) + \
        chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def saved(image, kind="PNG", end=None):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()[:end]


NOISE = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8))
BROKEN = {
    "bomb": (lambda: bomb(50000, 50000), "exceeds limit"), "long bomb": (lambda: bomb(10**9, 1), "exceeds limit"),
    "narrow": (lambda: bomb(60000, 1), "60000 x 1 pixels are too narrow"),
    "broken PNG": (lambda: saved(NOISE).replace(b"IDAT", b"ID\xffT"), ""),
    "cut off PNG": (lambda: saved(NOISE, end=900), "truncated"),
    "cut off JPEG": (lambda: saved(NOISE, "JPEG", 900), "truncated"),
    "JPEG without tables": (lambda: saved(NOISE, "JPEG")[:20] + bytes(900), ""),
    "16 bits": (lambda: saved(Image.fromarray(np.full((40, 40), 999, np.uint16))), "more than 8 bits"),
    "floats": (lambda: saved(Image.fromarray(np.ones((40, 40), np.float32)), "TIFF"), "more than 8 bits"),
    "empty": (lambda: b"", "cannot identify"),
}


@pytest.mark.parametrize("read", ["imagefolder", "worker", "own constants", "tinyimagenet"])
@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_cannot_be_read_ends_in_one_line_that_names_it(name, read, tree, tiny_tree, tmp_path):
    content, words = BROKEN[name]
    if read == "tinyimagenet":
        path = tiny_tree / "tiny-imagenet-200" / "val" / "images" / "val_3.JPEG"
    else:
        shutil.copytree(tree, tmp_path / "tree")
        path = tmp_path / "tree" / "train" / "bee" / "3.png"
    path.write_bytes(content())
    with pytest.raises(UserError, match=f"^cannot read image {path}: .*{words}") as error:
        if read == "tinyimagenet":
            tiny(tiny_tree)
        else:
            data = photos(tmp_path / "tree", val_size=0, normalize="own" if read == "own constants" else "imagenet",
                          workers=int(read == "worker"))
            list(data.plain(8, seed=0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_may_be_left_out(workers, tree, tmp_path, capsys):
    shutil.copytree(tree, tmp_path / "tree")
    for path in ("train/bee/3.png", "val/ant/1.png"):
        (tmp_path / "tree" / path).write_bytes(saved(NOISE, end=900))
    data = photos(tmp_path / "tree", val_size=0, unreadable="skip", normalize="own", workers=workers)
    for _ in range(2):                                            # what has been named once is not named again
        assert [sum(len(y) for _, y in loader) for loader in (data.train(8, 0), data.test(3))] == [23, 7]
    named = [line for line in capsys.readouterr().out.splitlines() if "cannot read image" in line]
    assert len(named) == len(data.left_out) == 2 and all(line.endswith("; it is left out") for line in named)
    for path in (tmp_path / "tree/val").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot read image .*, and none of the 3 of its batch can be read"):
        list(data.test(3))


def test_a_jpeg_has_the_pixels_that_pillow_gives(tmp_path):
    for mode in ("RGB", "L", "CMYK"):
        NOISE.convert(mode).save(tmp_path / "some.jpg")
        assert torch.equal(pixels(tmp_path / "some.jpg"), pil_to_tensor(photo(tmp_path / "some.jpg")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_images_of_other_channels_become_rgb(mode, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    path = tmp_path / "tree" / "val" / "ant" / "0.png"
    white = Image.new("RGB", (20, 20), (255, 255, 255)).convert(mode)
    path.write_bytes(saved(white, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"))
    x, _ = next(iter(photos(tmp_path / "tree").test(1)))
    assert x.shape == (1, 3, 16, 16)
    torch.testing.assert_close(x[0, :, 8, 8], (1 - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1]))


@pytest.mark.parametrize("read", [
    lambda place: photos(place), lambda place: tiny(place),
    lambda place: cifar10(data_dir=str(place)), lambda place: svhn(data_dir=str(place)),
    lambda place: fashion_mnist(name="fashion_mnist", data_dir=str(place), size=32),
], ids=["imagefolder", "tinyimagenet", "cifar10", "svhn", "fashion_mnist"])
@pytest.mark.parametrize("below", ["", "/and/on"])
def test_a_data_dir_that_is_a_file_is_one_line(read, below, tmp_path):
    (tmp_path / "file").write_text("x")
    words = f"data_dir={tmp_path}/file{below} is no folder ({tmp_path}/file is a file)"
    with pytest.raises(UserError, match=re.escape(words)) as error:
        read(f"{tmp_path}/file{below}")
    assert "\n" not in str(error.value)
