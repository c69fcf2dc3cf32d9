"""Values beside proxies: what torch.fx hands to forward code instead of tensors, with what it stands for."""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

ABOVE = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")


class NotFollowed(Exception):
    """Forward code that depends on the values of a tensor."""


@dataclass(frozen=True)
class Known:
    """A value that the code computes, as opposed to one that is written in it."""

    value: Any


class Value(fx.Proxy):
    """A proxy whose value is known: has a length and parts, can be branched on, and be changed in place."""

    def _value(self) -> Any:
        return self.tracer.values[self.node]

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(self._value(), name)):
            return Method(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __len__(self) -> int:
        return operator.index(self.size(0)) if isinstance(self._value(), Tensor) else len(self._value())

    def __iter__(self) -> Iterator:
        return iter(self._value()) if isinstance(self._value(), dict) else iter([self[i] for i in range(len(self))])

    def __contains__(self, key: Any) -> bool:
        return key in self._value()

    def __radd__(self, other: Any) -> Any:
        if not isinstance(other, list):
            return super().__radd__(other)
        if isinstance(self._value(), list):
            return other + list(self)
        other.extend(self)                                        # `parts += x.split(2)`: lists know no other sum
        return other

    def __index__(self) -> int:
        return operator.index(self.tracer.ask(self.node))

    def __int__(self) -> int:
        return int(self.tracer.ask(self.node))

    def __float__(self) -> float:
        return float(self.tracer.ask(self.node))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


class Method(fx.proxy.Attribute, Value):
    """Of a value, about to be called."""


def _in_place(name: str) -> Callable:
    def change(self: Value, other: Any) -> Value:
        function = getattr(operator, name if isinstance(self._value(), Tensor) else name[1:])
        return self.tracer.create_proxy("call_function", function, (self, other), {})
    return change


for _name in ("iadd", "isub", "imul", "itruediv"):                # torch.fx makes a new tensor of `p += q`
    setattr(Value, f"__{_name}__", _in_place(_name))


def mapped(value: Any, fn: Callable[[Any], Any]) -> Any:
    """fn of all parts of a tuple, list or dict; any other value stays."""
    if isinstance(value, dict):
        return {k: fn(v) for k, v in value.items()}
    if isinstance(value, list) or type(value) is tuple:
        return (tuple if isinstance(value, tuple) else list)(fn(v) for v in value)
    return value


def unknown(value: Any) -> Any:
    """What `Known` values stand for."""
    return value.value if isinstance(value, Known) else mapped(value, unknown)


def given(value: Any) -> Any:
    """The tensors of an example, `Known`."""
    return Known(value) if isinstance(value, Tensor) else mapped(value, given)


def plain(value: Any) -> Any:
    """Containers of torch.fx as Python's own."""
    return mapped(value, plain)


def holds_known(value: Any) -> bool:
    return isinstance(value, Known) or any(map(holds_known, _parts(value)))


def has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or any(map(has_tensor, _parts(value)))


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()


def reason(module: nn.Module, error: Exception) -> str:
    """One line: the module, the line of its forward, and what went wrong there."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ABOVE)]
    at = f" ({Path(lines[-1].filename).name}:{lines[-1].lineno}: {lines[-1].line})" if lines else ""
    what = " ".join(str(error).split()) or type(error).__name__
    return f"{type(module).__name__}{at}: {what:.200}"
