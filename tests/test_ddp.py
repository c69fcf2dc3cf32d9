"""Two processes that train together (gloo, on CPUs) end where one does."""

import json

import command
import pytest
import pytorch_lightning as pl
import torch
from conftest import EPOCHS, TINY
from hydra.utils import instantiate
from torch import nn

from reprune.errors import UserError
from reprune.runs.checks import trainable
from reprune.runs.measure import environment, threads
from reprune.training.callbacks import TestCurve
from reprune.training.classifier import fit


def net() -> nn.Module:
    """Without batch norm or dropout: then the arithmetic is the same, up to the order of the sums."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def trained(cfg, unfinished) -> tuple[nn.Module, list[float]]:
    model, data = net(), instantiate(cfg.dataset)
    curve = TestCurve(data, cfg.recipe.eval_batch_size)
    fit(model, data, cfg, "baseline", "baseline", callbacks=[curve], unfinished=unfinished)
    return model, curve.top1


def test_two_processes_reach_the_weights_of_one(configure, tmp_path):
    options = ["recipe.baseline.epochs=3", "recipe.batch_size=80", "dataset.limit=250"]      # the last batch: 10 images
    one, curve = trained(configure(*options), tmp_path / "one.ckpt")
    two, also = trained(configure(*options, "trainer=ddp"), tmp_path / "two.ckpt")
    start = net().state_dict()
    for name, weight in one.state_dict().items():
        moved = (weight - start[name]).norm()
        assert (two.state_dict()[name] - weight).norm() < 1e-4 * moved, name
    assert len(also) == 3 and also == curve


def test_batches_that_add_up_their_gradients_reach_the_weights_of_whole_ones(configure, tmp_path, monkeypatch):
    options = ["recipe.baseline.epochs=2", "dataset.limit=240"]
    one, _ = trained(configure(*options, "recipe.batch_size=80"), tmp_path / "one.ckpt")
    halves = [*options, "recipe.batch_size=40", "trainer.accumulate_grad_batches=2"]
    two, _ = trained(configure(*halves), tmp_path / "two.ckpt")
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], weight, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="trainer.accumulate_grad_batches: .*set speed.graph=false"):
        trainable(configure(*halves, "trainer.accelerator=auto"))


class Counted(pl.Callback):
    """The threads of the processes that train."""

    def __init__(self):
        self.threads = None

    def on_train_start(self, trainer, module):
        self.threads = torch.get_num_threads()

    def state_dict(self):
        return {"threads": self.threads}

    def load_state_dict(self, state):
        self.threads = state["threads"]


def test_processes_that_train_together_have_the_threads_that_the_record_names(configure, tmp_path):
    cfg, counted, number = configure("trainer=ddp"), Counted(), 3
    with threads(number):
        fit(net(), instantiate(cfg.dataset), cfg, "baseline", "baseline", callbacks=[counted],
            unfinished=tmp_path / "two.ckpt")
        assert environment("cpu", 2)["threads"] == number
    assert counted.threads == number


def test_a_sweep_whose_runs_train_on_two_devices(tmp_path):
    """Batch norm sees one half of each batch on CPUs, so accuracies differ: they are not compared."""
    sweep = ["-m", *TINY, *EPOCHS, "method=random", "trainer=ddp", "seed=0", f"output_dir={tmp_path}/two"]
    done = command.run(*sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (record,) = [json.loads(file.read_text()) for file in tmp_path.glob("two/*/record.json")]
    assert record["epochs"] == {"baseline": 1, "sparse": 0, "recover": 1} and record["env"]["devices"] == 2
    assert f"{record['key']}: finished before" in command.run(*sweep, cwd=tmp_path).stdout


def test_a_batch_that_cannot_be_shared_is_refused(configure):
    data = instantiate(configure().dataset)
    with pytest.raises(UserError, match="batch_size=25 .* multiple of 2"):
        data.train(25, seed=0, share=(0, 2))
