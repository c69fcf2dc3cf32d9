"""How long a forward pass of the net of any plan takes on this device: a sum over its operations, each measured once
for the shapes it sees, and kept in a file.

A pass is listed on torch's meta device, which computes shapes alone. Where an operation of it is new, that net is
really cut and run, and its operations are timed in their places: alone, with all it reads in the processor's cache, a
layer takes up to half the time. Watching costs every operation about the same; that is taken off, so that the
operations of a pass add up to what it takes unwatched. What lies between two operations (Python, memory given back) is
the first one's.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from reprune.errors import UserError
from reprune.files import read_sealed, write_sealed
from reprune.structure.groups import Plan
from reprune.structure.modes import eval_mode, whole
from reprune.structure.surgery import remove

REPEATS = 5                             # passes watched, and as many unwatched, after one of each to warm up
HEAP = 30 * 2**20                       # bytes


class Listing(TorchDispatchMode):
    """Notes the operations of a pass; of one that has been seen, the output is known. Views take no time."""

    def __init__(self, outputs: dict[str, Any]):
        super().__init__()
        self.outputs, self.operations = outputs, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = f"{op} {tree_map(described, (args, kwargs or {}))}"
        if name not in self.outputs:
            self.outputs[name] = op(*args, **(kwargs or {}))
        if not op.is_view:
            self.operations.append(name)
        return self.outputs[name]


def described(value: Any) -> Any:
    """A tensor by all that its time depends on.

    >>> described(torch.zeros(2, 3)), described(torch.zeros(2, 3).T), described(1)
    ('float32[2, 3]', 'float32[3, 2]/(1, 3)', 1)
    """
    if not isinstance(value, Tensor):
        return value
    return f"{str(value.dtype)[6:]}{list(value.shape)}" + f"/{value.stride()}" * (not value.is_contiguous())


class Watched(TorchDispatchMode):
    """Times the same operations where numbers are."""

    def __init__(self, now: Callable[[], float]):
        super().__init__()
        self.now, self.seconds, self.left = now, [], 0.0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        entered = self.now()
        if self.seconds:
            self.seconds[-1] += entered - self.left
        if not op.is_view:
            self.seconds.append(0.0)
        start = self.now()
        out = op(*args, **(kwargs or {}))
        self.left = self.now()
        if self.seconds:
            self.seconds[-1] += self.left - start
        return out


def clock(device: torch.device) -> Callable[[], float]:
    """Of one thread on the CPU, the time that it has the processor: what other programs take does not count."""
    if device.type == "cuda":
        return lambda: (torch.cuda.synchronize(), time.perf_counter())[1]
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


@torch.inference_mode()
def measured(net: nn.Module, x: Tensor, operations: list[str]) -> list[float]:
    """Seconds of each operation of a pass, medians; watched and unwatched passes take turns."""
    torch.empty(HEAP, dtype=torch.uint8)                          # freed: glibc then keeps pages for the next pass
    now, watched, plain = clock(x.device), [], []
    with eval_mode(net), whole(net):
        for _ in range(1 + REPEATS):
            with Watched(now) as turn:
                net(x)
            start = now()
            net(x)
            plain.append(now() - start)
            watched.append(turn.seconds)
    if {len(turn) for turn in watched} != {len(operations)}:
        raise UserError(f"the time of this {type(net).__name__} cannot be predicted: what it does depends on more than "
                        "the shape of its input; give a budget of MACs instead")
    found = [median(turns) for turns in zip(*watched[1:], strict=True)]
    watching = (sum(found) - median(plain[1:])) / len(found)
    return [seconds - watching for seconds in found]


class Times:
    """Predicts the seconds of a pass of what any plan leaves of a net.

    net: traced; x: the batch that it sees, on its device. `new`: how many operations had to be measured.
    """

    def __init__(self, net: nn.Module, x: Tensor):
        self.net, self.x, self.outputs, self.new = net, x, {}, 0
        self.meta, self.shape = copy.deepcopy(net).to("meta"), x.to("meta")
        self.setting = setting(x.device)
        self.file = table(self.setting)
        self.known = read(self.file)

    def __call__(self, plan: Plan) -> float:
        operations = self.operations(plan)
        if set(operations) - self.known.keys():
            smaller = remove(self.net, plan, check=False)
            for name, seconds in zip(operations, measured(smaller, self.x, operations), strict=True):
                self.new += name not in self.known
                self.known.setdefault(name, seconds)
        return sum(self.known[name] for name in operations)

    def operations(self, plan: Plan) -> list[str]:
        smaller = remove(self.meta, plan, check=False).eval()
        try:
            with torch.inference_mode(), whole(smaller), Listing(self.outputs) as listing:
                smaller(self.shape)
        except RuntimeError as error:
            raise UserError(f"the time of this {type(self.net).__name__} cannot be predicted: it does not run without "
                            f"numbers ({str(error).splitlines()[0]}); give a budget of MACs instead") from error
        return listing.operations

    def keep(self) -> None:
        """In the file, beside what other processes have put there."""
        if self.new:
            try:
                write_sealed(self.file, {**self.setting, "seconds": read(self.file) | self.known})
            except UserError as error:
                print(f"layer times are not kept: {error}", flush=True)


def setting(device: torch.device) -> dict[str, Any]:
    """What all times of a table have in common; the rest stands in the names of operations."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else \
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"machine": platform.node(), "device": f"{device.type} {name}", "threads": torch.get_num_threads(),
            "torch": torch.__version__}


def table(setting: dict[str, Any]) -> Path:
    digits = hashlib.sha256(json.dumps(setting).encode()).hexdigest()[:12]
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "reprune" / f"latency-{digits}.json"


def read(file: Path) -> dict[str, float]:
    """Operation -> seconds. A damaged file is told, and counts as empty."""
    try:
        found = read_sealed(file)["seconds"]
        if not all(isinstance(seconds, float) and math.isfinite(seconds) for seconds in found.values()):
            raise ValueError("not all of it are times")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        print(f"{file}: cannot be read, layers are measured again ({error})", flush=True)
        return {}
    return found
