"""A signal waits until the state of training is saved; then it takes effect, and the run goes on from that batch."""

import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from test_resume import Cut, result

from reprune.pipeline import run
from reprune.training import classifier as lightning

METHODS = {"hgsr": ["recipe.recover.epochs=2"],
           "sfp": ["recipe.sparse.epochs=2"],
           "l1": ["model=narrow_alexnet", "dataset.size=32", "recipe.test_every_epoch=true"]}            # with dropout


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
    for step in range(1, 99, 2):                                  # three batches an epoch: each of them in turn
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


def test_a_signal_that_is_ignored_changes_nothing(configure, monkeypatch, tmp_path, capsys):
    whole = run(configure("method=l1", f"output_dir={tmp_path}/whole"))
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal_at(monkeypatch, 2, signal.SIGHUP)
    assert result(run(configure("method=l1"))) == result(whole)
    assert "SIGHUP: saved after" in capsys.readouterr().out and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, old)


def test_an_interrupt_ends_the_run_and_the_seconds_of_both_attempts_count(configure, monkeypatch):
    options = ["method=l1", "recipe.baseline.epochs=2"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        signal_at(patch, 6, signal.SIGINT)
        slow = lightning.Classifier.on_train_start
        patch.setattr(lightning.Classifier, "on_train_start", lambda self: (slow(self), time.sleep(2)))
        run(configure(*options))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(configure(*options))["seconds"]["baseline"] > 2
