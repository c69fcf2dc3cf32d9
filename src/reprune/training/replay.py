"""A training step recorded once and replayed: on a GPU a small net's kernels take less time than launching them.

    record   forward, losses and backward of the first whole batch, as one CUDA graph
    replay   copy the next batch to where the first one lay, launch the graph: a single call, the same kernels

The optimiser stays outside, for its learning rate changes: fused, it is one kernel more. What cannot be recorded (a
penalty that asks for the epoch, or waits for the GPU) is launched kernel by kernel as before, and a line says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reprune.pruning.sockets import Step

WARM_UP = 3                             # steps before recording: libraries choose kernels and allocate then

Terms = dict[str, Tensor]
"""What a step adds up, and shows: name -> scalar; "total" is the loss that gradients are taken of."""


class NotRecordable(RuntimeError):
    """The step depends on more than its batch and the weights."""


class Timeless(Step):
    """A step for every epoch: what is recorded once must not depend on it."""

    @property
    def epoch(self) -> int:
        raise NotRecordable("a penalty asks for the epoch")

    @epoch.setter
    def epoch(self, _: int) -> None:
        pass


Results = tuple[Terms, list[Tensor | None]]
"""Of a step: its terms, and the gradient of every parameter."""


class Recorder(Protocol):
    """Runs work, and then runs it again without Python."""

    def record(self, work: Callable[[], Results]) -> None: ...

    def replay(self) -> Results: ...


class CudaGraph:
    """`work` as one CUDA graph. Its results lie where the first ones lay: read them before the next replay."""

    def record(self, work: Callable[[], Results]) -> None:
        aside, now = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                work()
        now.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with (torch.cuda.stream(now),                             # goes back to it also where recording fails
              torch.cuda.graph(self.graph, capture_error_mode="thread_local")):    # loggers have threads of their own
            self.results = work()

    def replay(self) -> Results:
        self.graph.replay()
        return self.results


class Replay:
    """Steps of one shape. After each call `.grad` of every parameter is that of its batch.

    net: in training mode, its buffers (batch norm's means) move with every step as they would without recording.
    step: (x, y) -> Terms, without side effects but those of the net.
    """

    def __init__(self, net: nn.Module, step: Callable[[Tensor, Tensor], Terms], recorder: Recorder):
        self.net, self.step, self.recorder, self.parameters = net, step, recorder, list(net.parameters())
        self.batch: tuple[Tensor, Tensor] | None = None
        self.recorded = False

    def __call__(self, x: Tensor, y: Tensor) -> Terms:
        """Raises NotRecordable at the first batch, with net and random numbers as they were."""
        if not self.recorded:
            self._record(x, y)
        for place, now in zip(self.batch, (x, y), strict=True):
            place.copy_(now)
        terms, gradients = self.recorder.replay()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):       # whatever they were set to
            parameter.grad = gradient
        return terms

    def _record(self, x: Tensor, y: Tensor) -> None:
        self.batch = x.clone(memory_format=torch.preserve_format), y.clone()
        buffers = [buffer.clone() for buffer in self.net.buffers()]
        random = _random(x.device)
        try:
            self.recorder.record(self._work)
        except RuntimeError as error:
            self.net.zero_grad()
            raise NotRecordable(str(error).partition("\n")[0]) from error
        finally:                                                  # recording has run the net, and must not count
            with torch.no_grad():
                for buffer, before in zip(self.net.buffers(), buffers, strict=True):
                    buffer.copy_(before)
            _random(x.device, random)
        self.recorded = True

    def _work(self) -> Results:
        self.net.zero_grad()          # to None: gradients are written, not added up, to where the recorded ones lie
        device = self.batch[0].device.type
        given = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        with torch.autocast(device, **given, cache_enabled=False):        # else weights are those cast before recording
            terms = self.step(*self.batch)
        with torch.autocast(device, enabled=False):               # backward has the forward pass's types
            terms["total"].backward()
        return {name: term.detach() for name, term in terms.items()}, [p.grad for p in self.parameters]


def _random(device: torch.device, state: Any = None) -> Any:
    """-> the state of the random numbers that nets draw there; with `state`: sets it"""
    place = torch.cuda if device.type == "cuda" else torch
    return place.get_rng_state() if state is None else place.set_rng_state(state)
