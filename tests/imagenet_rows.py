"""Every row of a paper on ImageNet, run from end to end on a few images: `make imagenet-smoke`.

    python tests/imagenet_rows.py [--images FOLDER] [PATTERN ...]         all rows, or those like li2017/*

The row's own net, method and plan, with recipe=smoke cut to one epoch, on four classes of images of 64 pixels: drawn
here, or the first of each class of FOLDER/<class>/*. What a method measures is cut down as well (FEW). That says
whether a row runs on a net and on images of that kind, and nothing of the paper.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import time
import traceback
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("KINETO_LOG_LEVEL", "99")                    # as run.py does

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from reprune.errors import UserError
from reprune.pipeline import run
from reprune.runs.compose import composing

ROOT = Path(__file__).resolve().parent.parent
CLASSES, TRAIN, TEST, SIZE = 4, 6, 2, 64                          # images of a class, their side in pixels
SMOKE = ["recipe=smoke", "recipe.batch_size=8", "recipe.baseline.epochs=1", "recipe.sparse.epochs=1",
         "recipe.recover.epochs=1", "dataset.complete=null", f"dataset.classes={CLASSES}", f"dataset.size={SIZE}",
         "dataset.workers=0", "measure.batch_size=2", "logger=none", "trainer.accelerator=cpu",
         "trainer.enable_progress_bar=false"]
FEW = {"n_samples": 8, "n_examples": 8, "images": 8, "batches": 1, "steps": 2, "n": 2, "epochs": 1, "interval": 1}


def rows() -> list[str]:
    """All that are run on ImageNet."""
    files = sorted((ROOT / "experiments").glob("*/*.yaml"))
    return [f"{file.parent.name}/{file.stem}" for file in files if "override /dataset: imagenet\n" in file.read_text()]


def write(folder: Path, images: Path | None = None) -> Path:
    """folder/train/<class>/*.jpg and folder/val/<class>/*.jpg"""
    rng, given = np.random.default_rng(0), sorted((images or Path("none")).glob("*"))
    for label in range(CLASSES):
        files = sorted(given[label].iterdir()) if images else []
        for i in range(TRAIN + TEST):
            part = folder / ("train" if i < TRAIN else "val") / f"n{label:08}"
            part.mkdir(parents=True, exist_ok=True)
            if files:                                             # a sample may hold one image of each class
                shutil.copy(files[i % len(files)], part / f"{i}{files[i % len(files)].suffix}")
            else:
                noise = rng.integers(128, size=(SIZE + 9 * i, SIZE + 16, 3), dtype=np.uint8)
                Image.fromarray(noise + np.uint8(40 * label)).save(part / f"{i}.jpg")
    return folder


def smaller(cfg: DictConfig) -> DictConfig:
    """The same run, as short as it can be."""
    def cut(node: DictConfig) -> None:
        for name in node:
            value = OmegaConf.select(node, str(name))
            if isinstance(value, DictConfig):
                cut(value)
            elif name in FEW and isinstance(value, int) and value > FEW[name]:
                node[name] = FEW[name]

    cut(cfg.method)
    cfg.dataset.val_size = min(cfg.dataset.val_size, 8)
    return cfg


def dry(row: str, images: Path, out: Path, *more: str) -> dict:
    """-> the record of a dry run, which is kept nowhere but in `out`"""
    places = [f"dataset.data_dir={images}", f"output_dir={out}/outputs", f"results_dir={out}/results"]
    with composing(ROOT) as compose:
        cfg = compose([f"experiments={row}", *SMOKE, *places, *more])
    return run(smaller(cfg))


def failure(row: str, images: Path, out: Path) -> str | None:
    """What went wrong, in one line, with what was said last where it is no message for users."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            dry(row, images, out)
    except UserError as error:
        return str(error)
    except Exception as error:                                    # the other rows go on
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({place.filename}:{place.lineno})"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"], metavar="PATTERN")
    parser.add_argument("--images", type=Path, help="a folder with a folder of images for each class")
    given = parser.parse_args()
    chosen = [row for row in rows() if any(fnmatch(row, pattern) for pattern in given.patterns)]
    torch.set_num_threads(1)
    failed = {}
    for row in chosen:
        start = time.perf_counter()
        with TemporaryDirectory() as folder:
            error = failure(row, write(Path(folder) / "images", given.images), Path(folder))
        if error:
            failed[row] = error
        print(f"{row}: {error or 'runs'} ({time.perf_counter() - start:.0f} s)", flush=True)
    print(f"\n{len(chosen) - len(failed)} of {len(chosen)} rows on ImageNet run",
          *(f"  FAILED {row}: {error}" for row, error in failed.items()), sep="\n")
    return int(bool(failed) or not chosen)


if __name__ == "__main__":
    sys.exit(main())
