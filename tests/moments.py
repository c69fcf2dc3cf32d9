"""Something done to a process at an exact moment of its work: right before one of its file operations."""

import os
import sys
from collections.abc import Callable
from pathlib import Path


def before(number: int, do: Callable[[], None], name: str | None = None) -> list[int]:
    """Counts the file operations of this process from now on, and does it right before the one with this number.

    name: only what puts a file of this name in place counts."""
    count = [0]

    def hook(event: str, args: tuple) -> None:
        if name is None:
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            counts = writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
        else:
            counts = event == "os.rename" and Path(args[1]).name == name
        if counts:
            count[0] += 1
            if count[0] == number:
                do()

    sys.addaudithook(hook)
    return count


def first(place: Path, says: str = "") -> bool:
    """Is this the first process to ask? The place keeps what it says."""
    try:
        with place.open("x") as file:
            file.write(says)
    except FileExistsError:
        return False
    return True
