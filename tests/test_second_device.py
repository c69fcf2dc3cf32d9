"""Every method with its net and images on another device than the CPU, its steps recorded and replayed.

Held against the same run on the CPU: the code that a GPU runs, on arithmetic that can be compared.
"""

import pytest
import torch
from conftest import ROOT
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from second import AWAY, Tape, second_device
from test_resume import FEW as SMALL
from test_resume import result
from torch import nn

from reprune import pipeline
from reprune.pipeline import run
from reprune.training import classifier as lightning
from reprune.training import speed

METHODS = sorted(file.stem for file in (ROOT / "conf" / "method").glob("*.yaml"))
OPTIONS = ["method=l1 method/allocation=sensitivity method.allocation.macs=0.6",
           "method=l1 model=narrow_vgg11 dataset.size=32 dataset.limit=100 recipe.batch_size=50",
           "method=l1 +method.recover_penalties.kd={_target_:reprune.methods.distillation.Distillation}",
           "method=hgsr method/selection=loss_increase method/allocation=greedy method.allocation.macs=0.7 "
           "method.criterion.n_samples=20",
           "method=ga method/rounds=layer_by_layer method.rounds.layers=5"]
FEW = {"ga": "method.criterion.n_samples=60 method.search.generations=3 method.search.n_final=60",
       "obs": "method.masks.n_samples=64 method.masks.skip=[layer2.0.conv2,layer3.0.conv1,layer3.0.conv2]",
       "taylor2016": "method.criterion.n_samples=60 method.rounds.n=2",
       "taylor2019": "method.criterion.batches=2 method.rounds.n=2",
       "apoz": "method.criterion.n_examples=60 method.rounds.n=2",
       **{name: " ".join(options) for name, options in SMALL.items()}}


@pytest.fixture
def second(monkeypatch):
    """Runs are told that their device is a GPU, torch that it has one, and Lightning nothing."""
    for module in (lightning, pipeline):
        monkeypatch.setattr(module, "device", lambda cfg: "cuda")
    monkeypatch.setattr(speed, "CudaGraph", Tape)
    monkeypatch.setattr(lightning, "fused", lambda *_: {})        # the last bits of its sums are others
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", AWAY)
    monkeypatch.setattr(CPUAccelerator, "setup_device", lambda *_: None)
    for name, answer in {"get_device_name": "second", "synchronize": None, "memory_allocated": 0,
                         "max_memory_allocated": 2**20, "reset_peak_memory_stats": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, *_: torch.set_rng_state(state))
    return second_device


@pytest.mark.parametrize("options", [*(f"method={name}" for name in METHODS), *OPTIONS])
def test_a_run_is_the_same_on_another_device(options, configure, one_thread, request, tmp_path, capsys):
    options += " " + FEW.get(options.removeprefix("method=").split()[0], "")
    options += " dataset.limit=120" * ("dataset.limit" not in options)
    here = run(configure(*options.split(), f"output_dir={tmp_path}/here"))
    with request.getfixturevalue("second")():
        there = run(configure(*options.split(), f"output_dir={tmp_path}/there"))
    assert (here["env"]["device"], there["env"]["device"]) == ("cpu", "cuda")
    assert result(there) == result(here) | {"latency": there["latency"]}
    assert "kernel by kernel" not in capsys.readouterr().out      # its penalties can be recorded


def test_the_second_device_refuses_what_a_gpu_refuses():
    with second_device():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert (here.device.type, there.device, there.is_cuda, (2 * there).device) == ("cpu", AWAY, True, AWAY)
        assert nn.Linear(3, 3).cuda()(there).device == AWAY and there.cpu().device.type == "cpu"
        assert there[torch.tensor([0])].device == AWAY and torch.zeros_like(there).is_cuda
        assert there[0].item() == (here + there.to(here))[1] / 2 == 1
        with pytest.raises(RuntimeError, match="same device"):
            here + there
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        for wait in (lambda: there.sum().item(), lambda: here.to("cuda"), lambda: there.copy_(here)):
            with pytest.raises(RuntimeError, match="not permitted"):
                Tape().record(lambda: wait() if Tape.recording else None)
        assert not torch.ones(3).is_cuda
