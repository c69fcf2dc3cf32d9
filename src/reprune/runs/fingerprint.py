"""Which version of a method, of the data and of a model a run was made with: hashes of the code its config names.

The commit in a record names the whole checkout, and so differs between any two states of the project; two seeds may
only be averaged silently if the code of their method and data is the same.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_object

PARTS = ("method", "dataset", "model")
WHOLE = ("data",)                       # folders whose files only work together: one hash for all of them


def fingerprint(config: dict) -> dict[str, str]:
    """Eight digits for each of PARTS: of the files that define its `_target_`s."""
    files = {part: sorted({file for target in targets(config[part]) for file in sources(target)}) for part in PARTS}
    return {part: hashlib.sha256("".join(map(code_of, files[part])).encode()).hexdigest()[:8] for part in PARTS}


def targets(node: Any) -> Iterator[str]:
    """All `_target_`s of a config, but torch's: its version stands in the record.

    >>> list(targets({"a": [{"_target_": "x.Y"}], "_target_": "z", "b": {"_target_": "torch.optim.SGD"}}))
    ['x.Y', 'z']
    """
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, part in parts:
        if name != "_target_":
            yield from targets(part)
        elif not part.startswith("torch."):
            yield part


def sources(target: str) -> list[Path]:
    try:
        file = Path(inspect.getfile(inspect.unwrap(get_object(target))))
    except TypeError:                                             # built into Python
        return []
    return list(file.parent.glob("*.py")) if file.parent.name in WHOLE else [file]


@cache
def code_of(file: Path) -> str:
    """Source without comments, layout and docstrings, which no result depends on."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and ast.get_docstring(node, clean=False) is not None):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)
