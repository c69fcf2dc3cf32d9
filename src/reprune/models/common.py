"""What the nets of this package share: initial weights and argument checks."""

from __future__ import annotations

from torch import Tensor, nn

from reprune.errors import UserError
from reprune.structure.modes import untouched
from reprune.structure.notes import note


def init_convs(net: nn.Module, fan: str = "fan_in") -> None:
    """Weights with std = sqrt(2 / fan) for every conv, biases 0, in place. He et al. 2015, arXiv:1502.01852, eq. 10 and
    14. Noted on the net: `fresh.reset` draws by the same rule."""
    note(net, init=fan)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_depth(family: str, depth: int, allowed: tuple[int, ...]) -> int:
    """`depth`, if this family of nets has it; UserError listing what is allowed otherwise."""
    if depth not in allowed:
        raise UserError(f"{family} has no depth {depth!r}; allowed are {', '.join(map(str, allowed))}")
    return int(depth)


def check_counts(**counts: int) -> None:
    """UserError naming the first argument that is not a positive whole number."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"model.{name}={value!r} must be a positive whole number")


def check_task(net: nn.Module, example: Tensor, classes: int) -> None:
    """UserError unless the net takes images like the example [1, C, H, W] and has a logit for each of the classes."""
    shape = " x ".join(map(str, example.shape[1:]))
    try:
        with untouched(net, example.device):
            logits = net(example)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"the model does not take the {shape} images of the dataset: {str(error).splitlines()[0]}"
                        ) from error
    if logits.shape[-1] < classes:
        raise UserError(f"model.classes={logits.shape[-1]}, but the dataset has {classes} classes: leave model.classes "
                        "to the dataset, or name another dataset")
