"""What is told, in one line, of an error: what Hydra refuses and what was probably meant, the cause of what failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import OmegaConf

from reprune.errors import user_error
from reprune.runs.compose import composing
from reprune.runs.places import home, row_files

NOISE = re.compile(r"(, )?set env var HYDRA_FULL_ERROR=1 to see chained exception\.?|See https://hydra\.cc\S+ for \w+")


def told(error: BaseException) -> str:
    """In one line; of a class or function of a config that fails, or is not there, with why."""
    if line := user_error(error):
        return line
    said = " ".join(NOISE.sub("", str(error)).split())
    if not isinstance(error, InstantiationException):
        return f"{type(error).__name__}: {said}".removesuffix(": ")
    inside = str(error.__cause__ or "").split("\n")[0]
    return said if inside in said else f"{said}: {told(error.__cause__)}"


def meant(word: str, known: Iterable[str]) -> str:
    """What a mistyped word was to be; "" if nothing is like it.

    >>> meant("l2", ["l1", "random"]), meant("lr", ["seed", "recipe.baseline.lr"]), meant("x", ["seed"])
    (" (did you mean 'l1'?)", " (did you mean 'recipe.baseline.lr'?)", '')
    """
    known = sorted(known)
    near = [name for name in known if name.endswith(f".{word}")] or get_close_matches(word, known, 1, 0.5)
    return f" (did you mean {' or '.join(map(repr, near[:3]))}?)" if near else ""


def refused(error: Exception, overrides: Sequence[str], root: Path = Path()) -> str:
    """What Hydra says of overrides that make no config, for people."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return f"{group}={choice}: there is no such choice{meant(choice, error.options)}; {listed(error.options)}"
    if name := re.match(r"Could not (?:override|delete|append)[^']*'([^'@]+)", str(error)):
        there, word = {*names(overrides, root)}, name[1]
        below = [known for known in there if known.rpartition(".")[0] == word.rpartition(".")[0]]
        return f"{word}: there is no such option{meant(word, there) or f'; {listed(below)}'}"
    return " ".join(NOISE.sub("", str(error)).split())


def listed(names: Iterable[str]) -> str:
    return f"there are: {', '.join(sorted(names))}"


def groups(root: Path = Path()) -> dict[str, list[str]]:
    """{group: its choices} of the configs of a folder, without its rows."""
    found: dict[str, set[str]] = {}
    for conf in (home(root) / "conf", root / "conf"):
        for file in conf.glob("*/**/*.yaml"):
            found.setdefault(file.parent.relative_to(conf).as_posix(), set()).add(file.stem)
    return {group: sorted(choices) for group, choices in sorted(found.items())}


def names(overrides: Sequence[str], root: Path) -> Iterator[str]:
    """Of all that can be set, given the choices among some overrides."""
    there = groups(root)
    yield from ("experiments", *there)
    with composing(root) as compose:
        try:
            config = compose([text for text in overrides if text.partition("=")[0] in there])
        except (HydraException, ValueError):
            config = compose([])
    yield from dotted(OmegaConf.to_container(config))


def dotted(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from dotted(value, f"{prefix}{key}.")


def usage(root: Path = Path()) -> str:
    """All that the command of a run takes."""
    papers: dict[str, list[str]] = {}
    for row in sorted(row_files(root)):
        papers.setdefault(f"experiments={row.split('/')[0]}/", []).append(row.split("/")[1])
    there = groups(root)
    plugins = {name: ["basic", *there.pop(name)] for name in ("hydra/launcher", "hydra/sweeper")}
    text = (home(root) / "conf/config.yaml").read_text(encoding="utf-8")
    return "\n".join([
        "Usage: reprune run [-m] [GROUP=CHOICE] [KEY=VALUE] ...", "",
        "Trains, prunes and measures one net; with -m a sweep over values with commas: method=l1,random seed=0,1",
        "A finished run is not run again. Results go to the current folder.", "",
        "  -m            a sweep: the cells that are not finished", "  --cfg job     print the config, run nothing",
        "  --help        this text", "", "Groups:", *table(there), "",
        "Rows of papers, experiments='glob(li2017/*)' for all of one:",
        *table(papers), "", "How the cells of a sweep are launched, and chosen:", *table(plugins), "",
        "Keys, and all of the config with --cfg job:",
        *(f"  {line}" for line in re.findall(r"^\w+: .*#.*", text, re.M) if "# set by" not in line)])


def table(rows: dict[str, list[str]]) -> Iterator[str]:
    """In lines of the width of a terminal."""
    from textwrap import wrap

    for name, choices in rows.items():
        first, *rest = wrap(", ".join(choices), 82)
        yield f"  {name:24}  {first}"
        yield from (f"{'':28}{line}" for line in rest)
