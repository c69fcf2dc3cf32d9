"""Nested mappings, such as configs, by dotted names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def get(node: Any, name: str) -> Any:
    """The value of a dotted name; ... where there is none."""
    for part in name.split("."):
        node = node.get(part, ...) if isinstance(node, dict) else ...
    return node


def without(config: dict, names: Iterable[str]) -> dict:
    """With some dotted names left out, and the mappings that this leaves empty.

    >>> without({"a": {"b": 1, "c": 2}, "d": 3, "e": {"f": {"g": 4}}}, ("a.b", "d", "e.f.g", "x.y"))
    {'a': {'c': 2}}
    """
    below: dict[str, list[str]] = {}
    for name in names:
        below.setdefault(name.partition(".")[0], []).append(name.partition(".")[2])
    kept = {key: without(value, below[key]) if key in below and isinstance(value, dict) else value
            for key, value in config.items() if "" not in below.get(key, ())}
    return {key: value for key, value in kept.items() if value != {} or key not in below}


def sortable(node: Any) -> Any:
    """With the keys of a mapping as texts where they are of several kinds: {1: 0.5, "layer2": 0.2}."""
    if isinstance(node, list):
        return [sortable(item) for item in node]
    if not isinstance(node, dict):
        return node
    mixed = len({type(key) for key in node}) > 1
    return {json.dumps(key) if mixed and not isinstance(key, str) else key: sortable(value)
            for key, value in node.items()}
