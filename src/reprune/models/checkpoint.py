"""Pruned nets on disk: safetensors with a metadata header, no pickle.

The header holds the model config and the plans that were applied, in order. Loading builds the full net, removes the
same filters again and fills in the tensors, so a file can be read without the code that chose the filters.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reprune import models
from reprune.errors import UserError
from reprune.files import replacing
from reprune.models.dynamic import gate
from reprune.models.header import FLOATS, FORMAT, Held, parse, read, read_header
from reprune.structure.groups import FilterGroup, Plan, trace
from reprune.structure.notes import notes
from reprune.structure.surgery import remove

__all__ = ["load", "read_header", "save"]


def save(net: nn.Module, path: str | Path, model: dict | None = None,
         builder: Callable[..., nn.Module] | None = None) -> None:
    """Writes `path` in one step (never half a file).

    model: the `conf/model` node the unpruned net was built from; nets of a run and of `reprune.models.build` carry it.
    builder: of a net of your own; `model` then holds its arguments, and `load` wants it again.
    Raises UserError where it is unknown, where the file could not be loaded again, or where the disk is full or does
    not take it.
    """
    header = header_of(net, model, builder)
    with replacing(Path(path)) as part:
        save_model(net, str(part), {"reprune": header})


def header_of(net: nn.Module, model: dict | None = None, builder: Callable[..., nn.Module] | None = None) -> str:
    """The header, from which the net can be built again. Raises UserError where it cannot."""
    model, history = model or notes(net).get("model"), notes(net).get("history", [])
    if builder is not None:
        model = {"_target_": f"{builder.__module__}.{builder.__qualname__}", **(model or {})}
    elif model and model.get("_target_") not in models.BUILDERS:
        raise UserError(f"save: model._target_={model.get('_target_')!r} is not a model builder of this program: pass "
                        "builder=, the function or class that makes the net")
    if model is None:
        raise UserError(f"save: how this {type(net).__name__} was built is not known; build it with "
                        "reprune.models.build, or pass model={'_target_': 'reprune.models.resnet', 'depth': 20, ...}, "
                        "or builder=, the function or class that makes it, with its arguments as model=")
    plans = [{g: _indices(~mask) for g, mask in plan.items() if not mask.all()} for plan in history]
    header = json.dumps({"format": FORMAT, "model": {**model, "weights": None}, "channels_last": _is_channels_last(net),
                         "input_shape": notes(net).get("input_shape", ()), "history": [p for p in plans if p],
                         **{name: what for name, what in notes(net).items() if name == "gates"}})
    try:
        parse(header)
    except ValueError as error:
        raise UserError(f"save: a checkpoint cannot describe this {type(net).__name__}: {error}") from error
    return header


def load(path: str | Path, builder: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The net saved at `path`, in eval mode, with bit-equal outputs. Only reads tensors and JSON, runs no code from it.

    builder: makes the unpruned net, where it is not one of this program's; what a file names is never imported.

    Raises UserError for a file that is missing, damaged, no safetensors file, or not of this program. What the header
    describes takes no memory before the tensors of the file fit it.
    """
    header, held = read(path)
    try:
        net = _described(header, held, builder).to_empty(device="cpu")
        load_model(net, str(path), strict=True)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:                                    # a stranger's header can end in nearly any
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: its tensors do not fit the net its header describes ({reason:.200}); the file is "
                        "damaged") from error
    if header["channels_last"]:                                   # the layout decides which kernel runs: bit-equal
        net = net.to(memory_format=torch.channels_last)
    return net.eval()


class _Weightless(TorchFunctionMode):
    """New weights take no memory. Not torch.device("meta"): RegNet computes its widths with tensors."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        where = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
        return func(*args, **{**(kwargs or {}), **where})


def _described(header: dict, held: Held, builder: Callable[..., nn.Module] | None) -> nn.Module:
    """The pruned net on the meta device. Raises ValueError where it does not have the tensors that the file holds."""
    _check_room(rebuilt({**header, "history": []}, builder), held, header["history"])
    net = rebuilt(header, builder)
    for name, tensor in net.state_dict().items():
        if list(tensor.shape) != held[name][1]:
            raise ValueError(f"{name} has shape {str(held[name][1]):.60}, not {list(tensor.shape)}")
    return net


def rebuilt(header: dict, builder: Callable[..., nn.Module] | None = None) -> nn.Module:
    """The net that a header describes, on the meta device. The last few are kept: the rounds of a run read one net
    after the other, and each has one plan more."""
    plans, start = [p for p in header["history"] if p], [header["model"], header.get("gates"), header["input_shape"]]
    first = json.dumps(start), builder
    keys = list(accumulate(map(json.dumps, plans), lambda key, plan: (*key, plan), initial=first))
    known = next((n for n in reversed(range(len(keys))) if keys[n] in _rebuilt), None)
    net = _unpruned(header, builder) if known is None else _rebuilt[keys[known]]
    for plan in plans[known or 0:]:
        net = copy.deepcopy(net)
        groups = trace(net, torch.empty(1, *header["input_shape"], device="meta"))
        net = remove(net, _plan(groups, plan), check=False)       # it was checked before it was saved
    _rebuilt[keys[-1]] = net
    while len(_rebuilt) > 8:
        del _rebuilt[next(iter(_rebuilt))]
    return copy.deepcopy(net)


_rebuilt: dict[tuple, nn.Module] = {}


def _unpruned(header: dict, builder: Callable[..., nn.Module] | None) -> nn.Module:
    with _Weightless():
        net = models.build({**header["model"], "weights": None}, builder)        # a header names no other files to read
        if gates := header.get("gates"):
            gate(net, **gates)
    return net.to("meta")


def _check_room(net: nn.Module, held: Held, history: list[dict[str, list[int]]]) -> None:
    """Raises ValueError unless the unpruned net has the tensors of the file, none of them smaller, and every filter
    that a plan removes is missing from the file: what follows takes no more time than the file is worth."""
    state, gone = net.state_dict(), Counter()
    if odd := sorted(state.keys() ^ held.keys()):
        raise ValueError(f"{len(odd)} tensors are on one side only, {odd[0]!r:.100} first")
    for group, indices in (item for plan in history for item in plan.items()):
        gone[f"{group.split('#')[0]}.weight"] += len(indices)
    if unknown := gone.keys() - state.keys():
        raise ValueError(f"no layer has the filters to remove, {min(unknown)!r:.100}")
    for name, (dtype, shape) in held.items():
        whole, floating = list(state[name].shape), state[name].is_floating_point()
        if dtype not in (FLOATS if floating else ("I64",)):
            raise ValueError(f"{name} is {dtype}")
        if len(whole) != len(shape) or any(a < b for a, b in zip(whole, shape, strict=True)) \
                or gone[name] and gone[name] > whole[0] - shape[0]:
            raise ValueError(f"{name} has shape {str(shape):.60}, where {gone[name]} filters of {whole} are removed")


def _plan(groups: list[FilterGroup], removed: Mapping[str, list[int]]) -> Plan:
    if unknown := removed.keys() - {g.name for g in groups}:
        raise ValueError(f"there is no group {min(unknown)!r:.100}")
    return {g.name: _mask(g.size, removed.get(g.name, [])) for g in groups}


def _is_channels_last(net: nn.Module) -> bool:
    return any(p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
               for p in net.parameters())


def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero().squeeze(1).tolist()


def _mask(size: int, removed: list[int]) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[torch.tensor(removed, dtype=torch.long)] = False
    return mask
