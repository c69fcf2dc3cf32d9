"""Published weights by their name: `model.weights=pretrained`, or one of torchvision's names, as IMAGENET1K_V1.

They are downloaded once, into torch's folder of such files (TORCH_HOME). A run's key and record know them as any file,
by what they hold.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from reprune.errors import UserError

PRETRAINED = "pretrained"


def weights_file(model: Mapping) -> Path:
    """The file that `weights` of a model node stands for, which need not be there. UserError: no weights of that name;
    they cannot be downloaded."""
    named = Path(os.path.expanduser(str(model["weights"])))
    finder = PUBLISHED.get(str(model.get("_target_")).rpartition(".")[2])
    if named.is_file() or finder is None or named.suffix or len(named.parts) > 1:
        return named
    return finder(str(model["arch"]), named.name)


def _torchvision(arch: str, name: str) -> Path:
    from torchvision import models

    try:
        found = models.get_model_weights(arch)
    except ValueError as error:
        raise UserError(f"model.weights={name}: {' '.join(str(error).split())}") from error
    names = {PRETRAINED: "DEFAULT", **{known: known for known in found.__members__}}
    if names.get(name) not in found.__members__:
        raise UserError(f"model.weights={name}: neither a file nor weights of torchvision's {arch}; there are: "
                        f"{', '.join(names) if found.__members__ else 'none'}")
    url = found[names[name]].url
    digits = Path(url).stem.rpartition("-")[2]                    # the first of the file's SHA-256: checked
    return _kept(Path(url).name, lambda file: torch.hub.download_url_to_file(url, str(file), digits, False), url)


def _timm(arch: str, name: str) -> Path:
    from safetensors.torch import save_file

    from reprune.models.timm_zoo import installed

    library = installed()
    if name != PRETRAINED:
        raise UserError(f"model.weights={name}: neither a file nor {PRETRAINED}; of several weights, timm's name of "
                        "the net says which: model.arch=resnet50.a1_in1k")

    def make(file: Path) -> None:
        state = library.create_model(arch, pretrained=True).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, file)

    return _kept(f"timm-{arch}.safetensors", make, f"timm's {arch}")


def _kept(name: str, make: Callable[[Path], None], what: str) -> Path:
    """The file of that name, made if it is not there yet: whole, or not at all."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not file.is_file():
        part = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            make(part)
            part.replace(file)
        except Exception as error:                                # no network, no space, no such weights
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"model.weights: cannot get {what} ({reason}); fetch it where there is a network, and set "
                            "model.weights=FILE") from error
        finally:
            part.unlink(missing_ok=True)
    return file


PUBLISHED: dict[str, Callable[[str, str], Path]] = {"torchvision": _torchvision, "timm": _timm}
