"""Steps recorded and replayed train the same net as steps that are not; so do compiled ones and bfloat16, nearly.

`Tape` stands where a GPU has a CUDA graph; all else is the code a GPU runs.
"""

import copy
import shutil

import pytest
import torch
from hydra.utils import instantiate
from second import Tape
from torch import nn

from reprune import models
from reprune.errors import UserError
from reprune.methods.distillation import Distillation
from reprune.methods.hgsr import HGSR
from reprune.pipeline import run
from reprune.training import classifier as lightning
from reprune.training.classifier import fit
from reprune.training.replay import NotRecordable, Replay
from reprune.training.speed import Compiled

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Cycle:
    """A penalty that looks at the epoch."""

    def __call__(self, step):
        return 1e-3 * (step.epoch + 1) * step.logits.square().mean()


class Waiting:
    """A penalty that asks the device for a number."""

    def __call__(self, step):
        return 1e-3 * step.logits.square().mean() if step.logits.sum().item() else 0


def net(dropout: bool = False) -> nn.Module:
    torch.manual_seed(0)
    net = models.resnet(8, in_channels=1)
    return nn.Sequential(net, nn.Dropout(0.5)) if dropout else net


def trained(start, configure, monkeypatch, recorder=None, penalties=None, teacher=None, *options):
    """-> weights and buffers, and the curve, of two epochs with an odd last batch"""
    cfg = configure("dataset=digits", "recipe.batch_size=100", "trainer.accelerator=auto", *options)
    start = copy.deepcopy(start)
    if recorder is not None:
        monkeypatch.setattr(lightning, "recorder", lambda *_: recorder)
    data = instantiate(cfg.dataset)
    facts = fit(start, data, cfg, "sparse", "sparse", epochs=2, penalties=penalties, teacher=teacher)
    return start.state_dict(), facts["curve"]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("case", ["plain", "penalties", "dropout", "bf16"])
def test_replayed_steps_train_the_same_net(case, configure, monkeypatch):
    options = ["trainer.precision=bf16-mixed"] if case == "bf16" else []
    penalties = {"hgsr": HGSR(weight=1e-4), "kd": Distillation()} if case == "penalties" else None
    args = penalties, net() if penalties else None, *options
    plain = trained(net(case == "dropout"), configure, monkeypatch, None, *args)
    replayed = trained(net(case == "dropout"), configure, monkeypatch, Tape(), *args)
    assert same(plain[0], replayed[0])
    assert plain[1] == replayed[1]


def test_a_run_is_the_same_run_with_replayed_steps(configure, monkeypatch, tmp_path):
    options = ["method=sfp", "recipe.sparse.epochs=2"]
    plain = run(configure(*options, f"output_dir={tmp_path}/plain"))
    monkeypatch.setattr(lightning, "recorder", lambda *_: Tape())
    replayed = run(configure(*options, f"output_dir={tmp_path}/replayed", "speed.graph=false"))
    assert plain["key"] == replayed["key"]
    assert plain["curves"] == replayed["curves"]
    assert plain["pruned"]["top1"] == replayed["pruned"]["top1"]


@pytest.mark.parametrize(("penalty", "why"), [(Cycle(), "a penalty asks for the epoch"),
                                              (Waiting(), "operation not permitted when stream is capturing")])
def test_a_step_that_cannot_be_recorded_is_not_replayed(penalty, why, configure, monkeypatch, capsys):
    options = None, {"cycle": penalty}, None, "trainer.precision=bf16-mixed"
    plain = trained(net(), configure, monkeypatch, *options)
    replayed = trained(net(), configure, monkeypatch, Tape(), *options[1:])
    assert same(plain[0], replayed[0])
    assert capsys.readouterr().out.count(f"kernel by kernel: {why}\n") == 1


def test_gradients_are_those_of_the_batch_whatever_became_of_them():
    model, batches = net(), [(torch.randn(8, 1, 32, 32), torch.arange(8)) for _ in range(2)]

    def step(x, y):
        return {"total": nn.functional.cross_entropy(model(x), y)}

    replay = Replay(model, step, Tape())
    for x, y in [*batches, batches[0]]:
        replay(x, y)
        found = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        step(x, y)["total"].backward()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), found, strict=True))


def test_recording_leaves_net_and_random_numbers_as_they_were():
    model, batch = net(dropout=True), (torch.randn(8, 1, 32, 32), torch.arange(8))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def step(x, y):
        return {"total": nn.functional.cross_entropy(model(x), y)}

    replay = Replay(model, step, Tape())
    replay._record(*batch)
    assert same(before, model.state_dict())
    assert torch.equal(random, torch.get_rng_state())

    class Broken(Tape):
        def record(self, work):
            super().record(work)
            raise RuntimeError("operation not permitted when stream is capturing\nand a stack")

    with pytest.raises(NotRecordable, match="^operation not permitted when stream is capturing$"):
        Replay(model, step, Broken())(*batch)
    assert same(before, model.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_bfloat16_goes_where_float32_goes(configure, monkeypatch):
    """The loss falls alike. (Whether accuracy is within noise over seeds, bench/gpu.py asks on a GPU.)"""
    loss = {precision: trained(net(), configure, monkeypatch, Tape(), None, None, f"trainer.precision={precision}",
                               "recipe.sparse.epochs=2", "recipe.batch_size=40")[1]["loss"]
            for precision in ("32-true", "bf16-mixed")}
    assert loss["32-true"] != loss["bf16-mixed"]
    assert loss["32-true"][1] < loss["32-true"][0] - 0.05
    assert loss["bf16-mixed"] == pytest.approx(loss["32-true"], rel=0.02)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_a_compiled_net_trains_as_the_net(configure, monkeypatch):
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
    plain = trained(small, configure, monkeypatch)
    faster = trained(small, configure, monkeypatch, Tape(), None, None, "speed.compile=true")
    for name, values in plain[1].items():
        assert faster[1][name] == pytest.approx(values, rel=1e-3), name


def test_where_there_is_no_compiler_a_line_says_so(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    with pytest.raises(UserError, match=r"^speed.compile=true, but torch cannot compile .*: set speed.compile=false$"):
        Compiled(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus()))(torch.randn(5, 1, 7, 7))


@GPU
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_cuda_graph_trains_the_same_net(precision, configure, monkeypatch):
    penalties, option = {"hgsr": HGSR(weight=1e-4), "kd": Distillation()}, f"trainer.precision={precision}"
    plain, replayed = (trained(net(), configure, monkeypatch, None, penalties, net(), option, f"speed.graph={graph}")
                       for graph in ("false", "true"))
    for name, values in plain[1].items():
        assert replayed[1][name] == pytest.approx(values, rel=1e-2), name
