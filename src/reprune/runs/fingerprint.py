"""Which version of a method, of the data, of a model and of training a run was made with: hashes of the code that its
config names, and of what trains every net.

The commit in a record names the whole checkout, and so differs between any two states of the project; two seeds may
only be averaged silently, and a result may only be served again, if the code of all four is the same. It is found by
reading source: nothing that a config names is imported for it.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PARTS = ("method", "dataset", "model", "training")          # the first three: parts of a config
PACKAGE = Path(__file__).parents[1]
WINGS = tuple(f"{PACKAGE.name}.{wing}" for wing in ("methods", "pruning", "structure", "models", "data"))
TRAINING = (f"{PACKAGE.name}.pipeline", f"{PACKAGE.name}.training")     # of every run, whatever its config names
READER = "reprune.models.load_weights"  # of the weights that a model is given


def fingerprint(config: dict) -> dict[str, str]:
    """Eight digits for each of PARTS: of the modules that define its `_target_`s, and of what these import; of training
    without what it uses of other wings, which stands in the other parts."""
    named = {part: frozenset(targets(config[part])) for part in PARTS[:3]}
    if config["model"].get("weights"):
        named["model"] |= {READER}
    return {**{part: _digits(names) for part, names in named.items()}, PARTS[3]: _digits(frozenset(TRAINING), TRAINING)}


def changed(code: Any, now: dict[str, str]) -> str:
    """The parts of `now` that other code has made, for people; "" if none. Of what does not know its code: all.

    >>> changed({"method": "aaaa", "model": "bbbb"}, {"method": "aaaa", "model": "cccc", "dataset": "dddd"})
    'model, dataset'
    """
    known = code if isinstance(code, dict) else {}
    return ", ".join(part for part, digits in now.items() if known.get(part) != digits)


def targets(node: Any) -> Iterator[str]:
    """All `_target_`s of a config, but torch's: its version stands in the record.

    >>> list(targets({"a": [{"_target_": "x.Y"}], "_target_": "z", "b": {"_target_": "torch.optim.SGD"}}))
    ['x.Y', 'z']
    """
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, part in parts:
        if name != "_target_":
            yield from targets(part)
        elif isinstance(part, str) and not part.startswith("torch."):
            yield part


@cache
def _digits(named: frozenset[str], wings: tuple[str, ...] = WINGS) -> str:
    files = sorted({(module, file) for target in named for module, file in sources(target, wings).items()})
    return hashlib.sha256("".join(code_of(file) for _, file in files).encode()).hexdigest()[:8]


@cache
def sources(target: str, wings: tuple[str, ...] = WINGS) -> dict[str, Path]:
    """{module: its file} of the one that defines a target, and of all below `wings` that it imports in the end."""
    found, todo = {}, [home(target)]
    while todo:
        module = todo.pop()
        if module not in found and (file := file_of(module)) is not None:
            found[module] = file
            todo += [at for name in imports(module) if _below(name, PACKAGE.name) for at in [home(name)]
                     if any(_below(at, wing) for wing in wings)]
    return found


def _below(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


@cache
def home(dotted: str) -> str:
    """The module that defines a dotted name, whatever faces of packages hand it on.

    >>> home("reprune.pruning.Method.__call__"), home("reprune.structure.cost"), home("math.sqrt")
    ('reprune.pruning.sockets', 'reprune.structure.cost', 'math')
    """
    module, names = dotted, []
    while "." in module and file_of(module) is None:
        module, _, name = module.rpartition(".")
        names.append(name)
    handed_on = next((origin for name, origin in _imported(module) if names and name == names[-1]), None)
    return module if handed_on in (None, dotted) else home(handed_on)


def imports(module: str) -> list[str]:
    """The dotted names that a module imports, also inside of its functions."""
    return [origin for _, origin in _imported(module)]


@cache
def _imported(module: str) -> list[tuple[str, str]]:
    """(name in the module, dotted name that it stands for)"""
    found = []
    for node in _statements(_tree(file_of(module))):
        if isinstance(node, ast.Import):
            found += [(alias.asname or alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = f"{_package(module, node.level)}.{node.module or ''}".strip(".") if node.level else node.module
            found += [(alias.asname or alias.name, f"{base}.{alias.name}") for alias in node.names]
    return found


def _package(module: str, level: int) -> str:
    """What the dots of a relative import mean."""
    up = level - (file_of(module).name == "__init__.py")
    return ".".join(module.split(".")[:-up] if up else module.split("."))


@cache
def file_of(module: str) -> Path | None:
    """Its source; None where there is none: no module, or one that is not written in Python."""
    first, *rest = module.split(".")
    if first == PACKAGE.name:
        place = PACKAGE.joinpath(*rest)
        return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)
    try:
        spec = find_spec(first)
    except ValueError:                                            # __main__
        return None
    for depth in range(2, len(rest) + 2):                         # not by find_spec, which would import the package
        spec = spec and spec.submodule_search_locations and PathFinder.find_spec(
            ".".join([first, *rest][:depth]), spec.submodule_search_locations)
    file = Path(spec.origin) if spec and spec.origin else None
    return file if file is not None and file.suffix == ".py" else None


@cache
def _tree(file: Path | None) -> ast.Module:
    """Without comments and layout, and without docstrings: no result depends on them."""
    tree = ast.parse("" if file is None else file.read_text(encoding="utf-8"))
    for node in _statements(tree):
        if (isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and ast.get_docstring(node, clean=False) is not None):
            node.body[0] = ast.Pass()
    return tree


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """It and all below it; ast.walk looks into expressions too, which are most of a tree."""
    yield node
    for part in ("body", "orelse", "handlers", "finalbody", "cases"):
        for below in getattr(node, part, ()):
            yield from _statements(below)


@cache
def code_of(file: Path) -> str:
    return ast.unparse(_tree(file))
