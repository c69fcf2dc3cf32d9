"""How a config names layers: by number, as papers do, by the beginning of a name, or by a pattern."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch

from torch import nn

from reprune.errors import UserError
from reprune.structure.groups import traced


def conv_numbers(net: nn.Module) -> dict[str, int]:
    """Conv layers numbered from 1 in order of execution; shortcut projections are not counted (Li et al. 2017).

    Where there are none, as in LeNet-300-100, the linear layers are."""
    layers = [(name, net.get_submodule(name)) for name, axis in traced(net).axes if axis == "out"]
    names = [name for name, layer in layers if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)] or \
        [name for name, layer in layers if isinstance(layer, nn.Linear)]
    counted = [n for n in names if "downsample" not in n and "shortcut" not in n]
    return {**dict.fromkeys(names, 0), **{n: i for i, n in enumerate(counted, 1)}}


def matches(key: int | str, name: str, numbers: dict[str, int]) -> bool:
    """Does `key` of `skip` or `rates` mean the layer `name`?

    >>> [matches(key, "layer1.0.conv1", {"layer1.0.conv1": 2}) for key in (2, "2", "layer1", "*.conv1", "layer", 3)]
    [True, True, True, True, False, False]
    """
    if isinstance(key, int) or str(key).isdigit():
        return numbers.get(name) == int(key)
    return name == key or name.startswith(f"{key}.") or fnmatch(name, key)


def all_match(option: str, keys: Iterable[int | str], numbers: dict[str, int]) -> None:
    """Raises UserError where a key of an option means no layer at all."""
    for key in keys:
        if not any(matches(key, name, numbers) for name in numbers):
            raise UserError(f"{option}: {key!r} matches no conv of this net (1..{len(numbers)}, or names such as "
                            f"{next(iter(numbers))!r})")
