"""Pruned nets on disk: safetensors with a metadata header, no pickle.

The header holds the model config and the plans that were applied, in order. Loading builds the full net, removes the
same filters again and fills in the tensors, so a file can be read without the code that chose the filters.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from reprune import models
from reprune.errors import UserError
from reprune.files import replacing
from reprune.structure.groups import trace
from reprune.structure.notes import notes
from reprune.structure.surgery import remove

FORMAT = "reprune/1"


def save(net: nn.Module, path: str | Path, model: dict | None = None) -> None:
    """Writes `path` in one step (never half a file).

    model: the `conf/model` node the unpruned net was built from; nets of a run and of `reprune.models.build` carry it.
    Raises UserError where it is unknown, or where the disk is full or does not take the file.
    """
    model, history = model or notes(net).get("model"), notes(net).get("history", [])
    if model is None:
        raise UserError(f"save: how this {type(net).__name__} was built is not known; build it with "
                        "reprune.models.build, or pass model={'_target_': 'reprune.models.resnet', 'depth': 20, ...}")
    header = {"format": FORMAT, "model": {**model, "weights": None}, "input_shape": notes(net).get("input_shape", ()),
              "history": [{g: _indices(~mask) for g, mask in plan.items() if not mask.all()} for plan in history],
              "channels_last": _is_channels_last(net)}
    with replacing(Path(path)) as part:
        save_model(net, str(part), {"reprune": json.dumps(header)})


def load(path: str | Path) -> nn.Module:
    """The net saved at `path`, in eval mode, with bit-equal outputs. Only reads tensors and JSON, runs no code from it.

    Raises UserError for a file that is missing, damaged, no safetensors file, or not of this program.
    """
    header = read_header(path)
    net = models.build({**header["model"], "weights": None})      # a header may not name other files to read
    try:
        for removed in header["history"]:
            example = torch.zeros(1, *header["input_shape"])
            plan = {g.name: _mask(g.size, removed.get(g.name, [])) for g in trace(net, example)}
            net = remove(net, plan)
        load_model(net, str(path), strict=True)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise UserError(f"{path}: its tensors do not fit the net its header describes "
                        f"({str(error).splitlines()[0]}); the file is damaged") from error
    if header["channels_last"]:                                   # the layout decides which kernel runs: bit-equal
        net = net.to(memory_format=torch.channels_last)
    return net.eval()


def read_header(path: str | Path) -> dict:
    """The metadata of a checkpoint: model, input_shape, history, channels_last."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path.absolute()}; a run leaves it in <output_dir>/<key>/net.safetensors")
    try:
        with safe_open(str(path), "pt") as file:
            header = json.loads((file.metadata() or {}).get("reprune", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: refused, not a readable safetensors file ({error}); pickled checkpoints are not "
                        "loaded here, give trained weights of a known net as model.weights=FILE") from error
    fields = {"model": dict, "input_shape": list, "history": list, "channels_last": bool}
    if not isinstance(header, dict) or header.get("format") != FORMAT or \
            any(not isinstance(header.get(k), t) for k, t in fields.items()):
        raise UserError(f"{path}: refused, a safetensors file that was not written by reprune.save ({FORMAT})")
    return header


def _is_channels_last(net: nn.Module) -> bool:
    return any(p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
               for p in net.parameters())


def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero().squeeze(1).tolist()


def _mask(size: int, removed: list[int]) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[torch.tensor(removed, dtype=torch.long)] = False
    return mask
