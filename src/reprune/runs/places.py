"""Where configs and rows are found: in the current folder, and where the package brings its own."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def packaged() -> Path:
    """The folder whose conf/ and experiments/ came with the package: the checkout, or, in a wheel, the package."""
    return next(place for place in (PACKAGE, PACKAGE.parents[1]) if (place / "conf/config.yaml").is_file())


def home(root: Path = Path()) -> Path:
    """Whose conf/config.yaml counts in a folder: its own, if it has one; else the package's."""
    return root.resolve() if (root / "conf/config.yaml").is_file() else packaged()


def project(root: Path = Path()) -> Path:
    """Whose rows the results in a folder are of: its own, if it has experiments/; else the package's."""
    return root if (root / "experiments").is_dir() else home(root)


def row_files(root: Path = Path()) -> dict[str, Path]:
    """{row id: its file} of all that can be run in a folder: the rows of its home, and those it adds."""
    return {f"{file.parent.name}/{file.stem}": file
            for place in (root, home(root)) for file in sorted(place.glob("experiments/*/*.yaml"))}


def additions(root: Path = Path()) -> list[str]:
    """The override by which Hydra finds what a folder adds to its home: conf/GROUP/*.yaml and rows. [] if nothing."""
    place, base = root.resolve(), home(root)
    if place == base or not any((place / name).is_dir() for name in ("conf", "experiments")):
        return []
    found = [base, place, *[place / "conf"] * (place / "conf").is_dir()]
    return ["hydra.searchpath=[" + ",".join("'file://" + str(f).replace("'", r"\'") + "'" for f in found) + "]"]
