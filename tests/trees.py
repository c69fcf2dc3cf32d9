"""Small trees of images, as the big datasets lie on the disk, and the datasets that read them."""

import numpy as np
from PIL import Image

from reprune.data import imagefolder, smallfolder, tinyimagenet


def write_tree(root):
    """train/ with 12 and val/ with 4 images of unequal sizes in each of two classes."""
    rng = np.random.default_rng(0)
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


def small(tree, **changes):
    knobs = {"name": "tree", "channels": 3, "classes": 2, "size": 16, "data_dir": str(tree), "normalize": "imagenet",
             "val_size": 6, "split_seed": 0, "limit": None, "augment": {"pad": 2, "flip": True}}
    return smallfolder(**{**knobs, **changes})


WNIDS = ("n03", "n01", "n02")


def write_tiny(folder):
    """Three classes of 8 training and 2 val images, each of one grey level: 64 per wnid, 8 per training image."""
    root = folder / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for wnid in WNIDS:
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        base = 64 * (int(wnid[1:]) - 1)
        for i in range(8):
            Image.new("L", (64, 64), base + 8 * i).save(images / f"{wnid}_{i}.JPEG")    # grey, as a few of the real set
        for i in range(2):
            file = f"val_{len(lines)}.JPEG"
            Image.new("RGB", (64, 64), (base + 8 * i,) * 3).save(root / "val" / "images" / file)
            lines.append(f"{file}\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def tiny(folder, **changes):
    knobs = {"name": "tinyimagenet", "channels": 3, "classes": 3, "size": 64, "data_dir": str(folder), "limit": None,
             "normalize": "imagenet", "val_size": 6, "split_seed": 0, "augment": {"pad": 4, "flip": True}}
    return tinyimagenet(**{**knobs, **changes})
