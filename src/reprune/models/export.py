"""A pruned net for other programs: ONNX, TorchScript, or a plain state_dict with the widths of its layers.

The file is written only if it gives the outputs of the net. With --onnx the times of the net before and after pruning
are measured side by side with onnxruntime (extra `export`). The input: images as the net was trained on, normalised.
"""

from __future__ import annotations

import io
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from reprune import models
from reprune.errors import UserError
from reprune.files import replacing
from reprune.models.checkpoint import load, read_header
from reprune.structure.cost import widths

TOLERANCE = 1e-4                        # of the largest logit: other kernels add in another order


def onnx_bytes(net: nn.Module, example: Tensor) -> bytes:
    """The net as one ONNX file: input `image` [batch, C, H, W] float32 of any batch size, output `logits`."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(net, (example,), out, input_names=["image"], output_names=["logits"], dynamo=True,
                          dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False)
    return out.getvalue()


def torchscript(net: nn.Module, example: Tensor) -> tuple[bytes, nn.Module]:
    """-> the file, and the net as it is read back from it"""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                           # torch announces successors of TorchScript
        torch.jit.save(torch.jit.trace(net, example, check_trace=False), out)      # it is checked here, see below
        return out.getvalue(), torch.jit.load(io.BytesIO(out.getvalue()))


def session(model: bytes) -> Callable[[Tensor], Tensor]:
    """The net as onnxruntime runs it on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    run = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(run.run(None, {"image": images.numpy()})[0])


def check(net: nn.Module, other: Callable[[Tensor], Tensor], images: Tensor, what: str) -> float:
    """-> the largest difference of two nets' outputs. Raises UserError where it is more than rounding."""
    with torch.no_grad():
        wanted, got = net(images), other(images)
    difference = (wanted - got).abs().max().item()
    if not difference <= TOLERANCE * wanted.abs().max().item():
        raise UserError(f"{what}: outputs differ from the net's by {difference:.2g}; nothing was written")
    return difference


def milliseconds(nets: list[Callable[[Tensor], Tensor]], images: Tensor, repeats: int = 30) -> list[float]:
    """Medians of taking turns (A B A B ...), per batch."""
    times: list[list[float]] = [[] for _ in nets]
    for _ in range(repeats):
        for run, row in zip(nets, times, strict=True):
            start = time.perf_counter()
            run(images)
            row.append(1000 * (time.perf_counter() - start))
    return [statistics.median(row[2:]) for row in times]


def unpruned(path: Path) -> nn.Module:
    """The net as it was before filters were removed, with random weights: for its widths and its speed."""
    return models.build({**read_header(path)["model"], "weights": None}).eval()


def to_onnx(net: nn.Module, source: Path, path: Path, images: Tensor) -> list[str]:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--onnx needs {error.name}, which is not installed: pip install -e '.[export]'") from error
    model = onnx_bytes(net, images[:2])
    run = session(model)
    worst = max(check(net, run, images[:n], str(path)) for n in (1, len(images)))
    _write(path, model)
    before, after = milliseconds([session(onnx_bytes(unpruned(source), images[:2])), run], images)
    return [f"largest difference of outputs {worst:.2g}",
            f"onnxruntime, batch {len(images)}, {torch.get_num_threads()} threads: unpruned {before:.2f} ms, pruned "
            f"{after:.2f} ms, {before / after:.2f}x faster"]


def to_torchscript(net: nn.Module, source: Path, path: Path, images: Tensor) -> list[str]:
    script, again = torchscript(net, images[:2])
    worst = max(check(net, again, images[:n], str(path)) for n in (1, len(images)))
    _write(path, script)
    return [f"largest difference of outputs {worst:.2g}"]


def to_state_dict(net: nn.Module, source: Path, path: Path, images: Tensor) -> list[str]:
    beside, filters = path.with_name(f"{path.name}.json"), widths(unpruned(source), net)
    with replacing(beside) as listed, replacing(path) as part:    # both or none
        torch.save({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, part)
        listed.write_text(json.dumps(filters, indent=1) + "\n", encoding="utf-8")
    return ["torch.load(FILE, weights_only=True) gives {name: tensor}",
            f"filters of every layer, [before, after]: {beside}"]


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(content)


FORMS = {"onnx": to_onnx, "torchscript": to_torchscript, "state-dict": to_state_dict}


def main(checkpoint: Path, files: dict[str, Path | None], batch: int, builder: str | None = None) -> None:
    """files: of FORMS, by their names; just one is to be written. builder: of a net of the user's own, dotted."""
    asked = [(name, path) for name, path in files.items() if path is not None]
    if len(asked) != 1:
        raise UserError("give one of " + ", ".join(f"--{name} FILE" for name in FORMS))
    if batch < 1:
        raise UserError(f"--batch is {batch}; use 1 or more images")
    ((name, path),) = asked
    if builder is not None:
        models.trust(builder)
    net = load(checkpoint).to(memory_format=torch.contiguous_format)
    shape = read_header(checkpoint)["input_shape"]
    if not shape:
        raise UserError(f"{checkpoint}: the size of its input is not known; trace or prune the net before it is saved")
    if path.resolve() == checkpoint.resolve():
        raise UserError(f"--{name} {path} is the checkpoint itself; name another file")
    images = torch.randn(max(2, batch), *shape, generator=torch.Generator().manual_seed(0))
    lines = FORMS[name](net, checkpoint, path, images)
    print("\n".join([f"wrote {path} ({path.stat().st_size / 2**20:.2f} MiB)", *lines]))
