"""Files of a torchvision dataset: those in data_dir, or else a download; torchvision verifies their checksums."""

from pathlib import Path

from filelock import FileLock

from reprune.errors import UserError


def fetch(dataset, data_dir: str, looked_for: str, train: dict | None = None, test: dict | None = None) -> tuple:
    """(train set, test set) of a torchvision dataset class; looked_for: where under data_dir its files should be."""
    root = Path(data_dir or "data").expanduser().resolve()
    if root.exists() and not root.is_dir():
        raise UserError(f"dataset {dataset.__name__}: data_dir={data_dir} is a file: set it to the folder of the data")
    options = train or {"train": True}, test or {"train": False}
    try:
        return tuple(dataset(root, **o) for o in options)
    except Exception as error:  # noqa: BLE001  missing and damaged files raise many types (RuntimeError, EOFError, ...)
        first = error
    fresh = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):  # of runs that start side by side, one downloads
            return tuple(dataset(root, **o, download=True) for o in options)
    except Exception as error:  # noqa: BLE001
        place = root / looked_for
        present = place.is_file() or (place.is_dir() and any(place.iterdir()))
        (root / ".download.lock").unlink(missing_ok=True)
        if fresh:
            _remove_empty(root)
        found = f"is damaged ({_line(first)})" if present else "is missing"
        raise UserError(
            f"dataset {dataset.__name__}: {place} {found} and the download failed ({_line(error)}); "
            "set data_dir=FOLDER or the environment variable DATA_DIR to a folder that has it, or run with a network"
        ) from error


def _line(error: Exception) -> str:
    """First line of an error message, or its type if it has none; without torchvision's advice on its Python API."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(" You can use download=True")[0]


def _remove_empty(root: Path) -> None:
    """Take back the folders that a failed download made."""
    for folder in [*sorted(root.rglob("*"), reverse=True), root]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
