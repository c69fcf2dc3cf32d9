"""A tree of images, `train/<class>/*` and `val/<class>/*`, as it lies on the disk, and whether all of it is there.

The second part is the TEST set. As usual for ImageNet, the published validation set is what papers report; it is never
used to select anything, so the held-out part comes out of train/.
"""

from collections.abc import Mapping
from pathlib import Path

from torchvision.datasets import ImageFolder

from reprune.data.files import data_folder
from reprune.errors import UserError


def trees(name: str, data_dir: str, classes: int, test: str = "val",
          complete: Mapping | None = None) -> tuple[ImageFolder, ImageFolder]:
    """train/ and the folder called `test`, with equal class lists (else the labels of one would be shifted).

    complete: {part: images, source: where to get them} of a known set. UserError: missing, half there, not as `classes`
    says, not to be read.
    """
    root, parts = data_folder(name, data_dir), ("train", test)
    again = f"; {complete['source']}" if complete else ""
    if absent := [part for part in parts if not (root / part).is_dir()]:
        raise UserError(f"dataset {name}: {root} has no {' and no '.join(f'{part}/' for part in absent)}; set "
                        f"{'dataset.' if complete else ''}data_dir to a folder with train/<class>/* and "
                        f"{test}/<class>/* ({test}/ is used as the test set){again}")
    try:
        found = [ImageFolder(root / part, allow_empty=complete is not None) for part in parts]
    except OSError as error:  # no class folders, one without images, or not to be read
        raise UserError(f"dataset {name}: {str(error).splitlines()[0]} (in {root}){again}") from error
    if complete:
        _check_complete(name, root, dict(zip(parts, found, strict=True)), classes, complete)
    train, held = found
    if train.classes != held.classes:
        different = sorted(set(train.classes) ^ set(held.classes))
        raise UserError(f"dataset {name}: train/ and {test}/ in {root} differ in classes: {', '.join(different[:5])}")
    if len(train.classes) != classes:
        raise UserError(f"dataset {name}: {root} has {len(train.classes)} classes, the config says {classes}; "
                        f"set dataset.classes={len(train.classes)}")
    return train, held


def _check_complete(name: str, root: Path, found: dict[str, ImageFolder], classes: int, complete: Mapping) -> None:
    """UserError that says what of it is not there, all parts in one line."""
    lacking = []
    for part, tree in found.items():
        if len(tree) != complete[part]:
            filled = {label for _, label in tree.samples}
            empty = [c for c, label in tree.class_to_idx.items() if label not in filled]
            none = f" ({empty[0]} has none)" if empty else ""
            lacking.append(f"{part}/ holds {len(tree):,} images of {complete[part]:,}, in {len(filled)} classes of "
                           f"{classes}{none}")
    if lacking:
        raise UserError(f"dataset {name}: {root} is not complete: {'; '.join(lacking)}; {complete['source']}, or set "
                        "dataset.complete=null (and dataset.classes) to use what is there")
