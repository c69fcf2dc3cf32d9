"""bfloat16 on a CPU: asked for, of a key of its own, refused where it is emulated; what is measured stays float32."""

import pytest
import torch
from safetensors.torch import load_file
from test_resume import TWO, Cut, cut_after, result
from torch import nn

from reprune.errors import UserError
from reprune.pipeline import run
from reprune.runs.checks import check
from reprune.runs.store import Store, baseline_key
from reprune.training import speed
from reprune.training.speed import threads_of

BF16 = "trainer=cpu_bf16"
SFP = ["method=sfp", "method.silence_every=1", "recipe.test_every_epoch=true", "dataset.val_size=0"]


@pytest.fixture
def native(monkeypatch):
    """native(False): from now on on a processor without the instruction"""
    def there(yes: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx512_f": True,
                                                                    "avx512_bf16": yes})
    return there


def test_precision_is_part_of_the_key_of_a_run_and_of_its_baseline(configure):
    plain, bf16, named = (Store(configure(*o)) for o in ([], [BF16], ["trainer.precision=bf16"]))
    assert plain.key != bf16.key == named.key
    assert baseline_key(plain.config) != baseline_key(bf16.config)
    assert Store(configure(BF16, "trainer.precision=32-true")).key == plain.key         # as a row may say


@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed", "bf16-true"])
def test_a_processor_that_emulates_it_is_told_before_anything_trains(precision, configure, native):
    for there in (True, False):
        native(there)
        check(configure())
        if there:
            check(configure(BF16, f"trainer.precision={precision}"))
    with pytest.raises(UserError, match=f"^trainer.precision={precision} on a CPU without bfloat16 instr") as error:
        check(configure(BF16, f"trainer.precision={precision}"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(speed.BF16))
def test_every_instruction_counts(name, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "any", name: True})
    assert speed.native_bf16()


def test_a_finished_run_is_shown_on_any_processor(configure, native):
    record = run(cfg := configure(BF16, "method=l1"))
    native(False)
    check(cfg)
    assert run(cfg)["key"] == record["key"] and record["config"]["trainer"]["precision"] == "bf16-mixed"
    with pytest.raises(UserError, match="would be very slow"):
        check(configure(BF16, "method=l1", "force=true"))


def test_it_takes_one_thread_if_nothing_else_is_said(configure):
    says = {(BF16,): 1, (BF16, "threads=2"): 2, (): None, ("threads=2",): 2}
    assert {given: threads_of(configure(*given), "cpu") for given in says} == says
    assert threads_of(configure("trainer.precision=bf16"), "cuda") is None
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert run(configure(BF16, "method=l1"))["env"]["threads"] == 1 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_steps_are_bfloat16_and_scores_accuracies_statistics_and_losses_float32(configure, monkeypatch):
    seen, of_loss = set(), set()

    def note(module, _, out):
        if isinstance(module, nn.Conv2d):
            seen.add((module.training and torch.is_grad_enabled(), out.dtype))

    function = nn.functional.cross_entropy
    monkeypatch.setattr(nn.functional, "cross_entropy",
                        lambda logits, *args, **kwargs: of_loss.add(logits.dtype) or function(logits, *args, **kwargs))
    with nn.modules.module.register_module_forward_hook(note):
        record = run(cfg := configure(BF16, *SFP))
    assert seen == {(True, torch.bfloat16), (False, torch.float32)} and of_loss == {torch.float32}
    assert len(record["curves"]["recover"]["loss"]) == record["epochs"]["recover"]
    kept = load_file(Store(cfg).net_file)
    assert any("running_var" in name for name in kept)
    assert {of.dtype for of in kept.values()} <= {torch.float32, torch.int64}


def test_cut_off_anywhere_it_ends_as_one_that_was_not(configure, monkeypatch, tmp_path):
    options = [BF16, *SFP, *TWO]
    whole = run(configure(*options, f"output_dir={tmp_path}/whole"))
    weights = load_file(tmp_path / "whole" / whole["key"] / "net.safetensors")
    for calls in (1, 2, 4, 6):
        with monkeypatch.context() as patch, pytest.raises(Cut):
            cut_after(patch, calls)
            run(configure(*options, f"output_dir={tmp_path}/{calls}"))
        assert result(run(configure(*options, f"output_dir={tmp_path}/{calls}"))) == result(whole), calls
        again = load_file(tmp_path / str(calls) / whole["key"] / "net.safetensors")
        assert all(torch.equal(again[name], weights[name]) for name in weights | again), calls


@pytest.mark.parametrize("trainer", ["auto", "cpu_bf16"])
def test_the_rows_that_compare_precisions_differ_in_nothing_else_whatever_the_trainer(trainer, configure):
    rows = [Store(configure(f"experiments=precision/resnet20-{name}", f"trainer={trainer}", tiny=False)).config
            for name in ("fp32", "bf16")]
    assert [row["trainer"].pop("precision") for row in rows] == ["32-true", "bf16-mixed"]
    assert [row.pop("experiment") for row in rows] == ["precision/resnet20-fp32", "precision/resnet20-bf16"]
    assert rows[0] == rows[1]
