"""A second device for tests on machines without a GPU: tensors on the CPU that behave as if they lay on `cuda:0`.

Which ones do is kept by their storage. What a GPU would refuse is refused: an operation on tensors of both devices,
`.numpy()` of a tensor that is away and, while steps are recorded (`Tape`), whatever waits for the device or copies to
it. Arithmetic is the CPU's, so that numbers can be compared.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from reprune.training.replay import WARM_UP

AWAY = torch.device("cuda", 0)
FORBIDDEN = RuntimeError("operation not permitted when stream is capturing\nand a stack")
_storages: dict[int, StorageWeakRef] = {}       # of tensors that are away; a reference keeps its number from another


def tensors(node) -> Iterator[Tensor]:
    """Of arguments and results; torch's own trees take most of a run's time."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, list | tuple | dict):
        for part in node.values() if isinstance(node, dict) else node:
            yield from tensors(part)


def is_away(x: Tensor) -> bool:
    return x.untyped_storage()._cdata in _storages


def send(x: Tensor) -> Tensor:
    reference = StorageWeakRef(x.untyped_storage())
    _storages.setdefault(reference.cdata, reference)
    return x


class Tape(TorchDispatchMode):
    """What a CUDA graph is, on a CPU: the operations of the recorded work, each with the memory it read and wrote then.
    A replay runs them again, nothing else: no Python of the work, no allocation."""

    recording = False

    def record(self, work):
        for _ in range(WARM_UP):
            work()
        self.operations, Tape.recording = [], True
        try:
            with self:
                self.results = work()
        finally:
            Tape.recording = False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise FORBIDDEN
        results = operation(*args, **(kwargs or {}))
        self.operations.append((operation, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    def replay(self):
        for operation, args, kwargs, results in self.operations:
            again, returns = operation(*args, **kwargs), operation._schema.returns
            pairs = [(results, again)] if len(returns) == 1 else zip(results, again, strict=True)
            for (place, value), kind in zip(pairs, returns, strict=True):
                if isinstance(place, Tensor) and kind.alias_info is None:     # not a view, not in place
                    place.copy_(value)
        return self.results


class Moved(torch.autograd.Function):
    """A copy on the other device; its gradient comes back from there."""

    @staticmethod
    def forward(ctx, x: Tensor, away: bool) -> Tensor:
        ctx.away, x = away, x.clone()
        _storages.pop(x.untyped_storage()._cdata, None)
        return send(x) if away else x

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return Moved.apply(gradient, not ctx.away), None


class Functions(TorchFunctionMode):
    """Where tensors are said to be, made and moved."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if x is None:
            pass
        elif function == Tensor.device.__get__:
            return AWAY if is_away(x) else function(x)
        elif function == Tensor.is_cuda.__get__:
            return is_away(x)
        elif function in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self.move(x, *([name] if name != "to" else args[1:]), **kwargs)
        elif function is Tensor.numpy and is_away(x):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        elif name in ("__getitem__", "__setitem__") and is_away(x):           # brings indices along
            args = x, tree_map(lambda i: self.move(i, AWAY) if isinstance(i, Tensor) else i, args[1]), *args[2:]
        if "device" in kwargs and torch.device(kwargs["device"] or "cpu").type == "cuda":
            return send(function(*args, **{**kwargs, "device": "cpu"}))
        return function(*args, **kwargs)

    @staticmethod
    def move(x: Tensor, *args, **kwargs) -> Tensor:
        device = kwargs.pop("device", None)
        if args and isinstance(args[0], Tensor):                  # .to(other)
            device, args = AWAY if is_away(args[0]) else "cpu", (args[0].dtype,)
        elif args and not isinstance(args[0], torch.dtype):       # .to(device, dtype, non_blocking)
            device, args = args[0], args[1:2]
        if device is not None and torch.device(device).type == "meta":        # shapes alone
            return x.to(device, *args)
        if device is not None and (torch.device(device).type == "cuda") != is_away(x):
            if Tape.recording:
                raise FORBIDDEN
            x = Moved.apply(x, torch.device(device).type == "cuda")
        args = [a for a in args if a is not None]
        kwargs = {k: v for k, v in kwargs.items() if v is not None and k != "non_blocking"}
        return x.to(*args, **kwargs) if args or kwargs else x


class Operations(TorchDispatchMode):
    """Results lie where operands do; there is one place for all of them, but for numbers without dimensions."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name
        given = [*tensors(args), *tensors(kwargs)]
        away = [is_away(x) for x in given]
        if name == "aten::copy_":
            if Tape.recording and len(set(away)) == 2:
                raise FORBIDDEN
            away = away[:1]
        elif any(away) and not all(a or not x.dim() for a, x in zip(away, given, strict=True)):
            raise RuntimeError(f"expected all tensors on the same device, but {name} got "
                               f"{[(tuple(x.shape), 'away' * a) for a, x in zip(away, given, strict=True)]}")
        results = operation(*args, **(kwargs or {}))
        if any(away):
            for result in tensors(results):
                send(result)
        return results


@contextmanager
def second_device():
    with ExitStack() as stack:
        stack.enter_context(Functions())
        stack.enter_context(Operations())
        try:
            yield
        finally:
            _storages.clear()
