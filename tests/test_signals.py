"""A signal waits until the state of training is saved; then it takes effect, and the run goes on from that batch."""

import signal

import pytest
import torch
from safetensors.torch import load_file
from test_resume import Cut, result

from reprune import lightning
from reprune.pipeline import run

METHODS = {"hgsr": ["recipe.recover.epochs=2"],
           "sfp": ["recipe.sparse.epochs=2"],
           "l1": ["model=narrow_alexnet", "recipe.test_every_epoch=true"]}            # with dropout


def signal_at(monkeypatch, step: int, number: int) -> None:
    """Sends this process a signal while it works on the so-manieth batch of the run."""
    left, forward = [step], lightning.Classifier.training_step

    def training_step(self, *args):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(number)
        return forward(self, *args)

    monkeypatch.setattr(lightning.Classifier, "training_step", training_step)


@pytest.fixture
def dies():
    """SIGTERM raises Cut, so that this process outlives it."""
    def handler(*_):
        raise Cut
    old = signal.signal(signal.SIGTERM, handler)
    yield handler
    assert signal.getsignal(signal.SIGTERM) is handler             # whoever changed it has put it back
    signal.signal(signal.SIGTERM, old)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_ended_in_any_batch_goes_on_from_there(method, configure, monkeypatch, tmp_path, dies, capsys):
    options = [f"method={method}", *METHODS[method], "recipe.batch_size=100"]
    whole = run(configure(*options, f"output_dir={tmp_path}/whole"))
    weights = load_file(tmp_path / "whole" / whole["key"] / "net.safetensors")
    for step in range(1, 99):                                     # three batches an epoch
        with monkeypatch.context() as patch:
            signal_at(patch, step, signal.SIGTERM)
            try:
                run(configure(*options, f"output_dir={tmp_path}/{step}"))
                break                                             # it came too late
            except Cut:
                pass
        assert "SIGTERM: saved after" in capsys.readouterr().out
        assert result(run(configure(*options, f"output_dir={tmp_path}/{step}"))) == result(whole), step
        again = load_file(tmp_path / str(step) / whole["key"] / "net.safetensors")
        assert all(torch.equal(again[name], weights[name]) for name in weights | again), step
    assert step > 6
