"""What makes training faster without another result: the knobs of `speed` in conf/config.yaml, and fused optimisers."""

from __future__ import annotations

import ctypes
import inspect
from contextlib import suppress
from functools import partial

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from reprune.errors import UserError
from reprune.training.replay import CudaGraph, Recorder

BF16 = {"avx512_bf16", "amx_bf16", "bf16"}          # of a processor; the last one: ARM
RECORDABLE = ("32-true", "bf16-mixed")  # 16-mixed scales the loss by what earlier steps have shown


def recorder(cfg: DictConfig, device: str) -> Recorder | None:
    """For a run on one GPU whose precision allows it, unless `speed.graph` is false."""
    alone = device == "cuda" and cfg.trainer.devices == 1
    return CudaGraph() if alone and cfg.speed.graph and cfg.trainer.precision in RECORDABLE else None


def cpu_bf16(cfg: DictConfig, device: str) -> bool:
    """Whether the run computes in bfloat16 on a CPU."""
    return device == "cpu" and str(cfg.trainer.precision).startswith("bf16")


def native_bf16() -> bool:
    """Whether this processor multiplies bfloat16 by an instruction."""
    return any(there for name, there in torch.cpu.get_capabilities().items() if name in BF16)


def threads_of(cfg: DictConfig, device: str) -> int | None:
    """As many as `threads` says; else one for bfloat16 on a CPU, whose small steps two threads slow down, and None, as
    the environment says, for all others."""
    return 1 if cfg.threads is None and cpu_bf16(cfg, device) else cfg.threads


def keep_memory(device: str) -> None:
    """From now on what a step on the CPU frees is there for the next one. Else glibc gives it back to the system, which
    hands it out again page by page, zeroed: more than 10,000 faults a step of ResNet-20 in float32, some 2,000 in
    bfloat16. Other systems: as they are."""
    if device != "cpu":
        return
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 2**31 - 1)          # M_TRIM_THRESHOLD
        mallopt(-3, 2**30)              # M_MMAP_THRESHOLD


class Compiled:
    """A net by torch.compile, from its first batch on, for batches of one size."""

    def __init__(self, net: nn.Module):
        self.net, self.fast = net, None

    def __call__(self, x: Tensor) -> Tensor:
        """Raises UserError where torch cannot compile it: no compiler on this machine, mostly."""
        if self.fast is None:
            torch.compiler.reset()      # nets of one class share a cache that gives up after eight shapes
            self.fast = torch.compile(self.net, dynamic=False)
        try:
            return self.fast(x)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            why = next(line.strip() for line in str(error).splitlines() if line.strip())
            raise UserError(f"speed.compile=true, but torch cannot compile this net here ({why}): "
                            "set speed.compile=false") from error


def fused(optimizer: partial, device: str) -> dict[str, bool]:
    """The argument that makes one kernel of all parameters' updates, where the optimiser has it and torch is fast by
    it: on GPUs.

    >>> fused(partial(torch.optim.SGD, lr=0.1), "cuda"), fused(partial(torch.optim.SGD, lr=0.1), "cpu")
    ({'fused': True}, {})
    """
    chosen = {"fused", "foreach"} & set(optimizer.keywords)
    knows = "fused" in inspect.signature(optimizer.func).parameters
    return {"fused": True} if device == "cuda" and knows and not chosen else {}
