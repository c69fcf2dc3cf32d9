"""Bad input: one clear line that names what is wrong and what is allowed, a non-zero exit, nothing half-written."""

import os
import pickle
from pathlib import Path

import command
import pytest
import torch

from reprune.errors import UserError, user_error
from reprune.models import build
from reprune.pipeline import run


def refused(cfg, *words: str) -> None:
    """The run ends in one UserError line with these words, and leaves neither record nor net."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (Hydra wraps it)
        run(cfg)
    line = user_error(caught.value)
    assert line and "\n" not in line, caught.value
    for word in words:
        assert word in line, line
    left = [p.name for p in Path(cfg.output_dir).rglob("*") if p.is_file() and (p.suffix in (".json", ".part"))
            and p.parent.name != "stages"]
    assert all(name == "baseline.json" for name in left), left    # a finished baseline is not lost
    assert not Path(cfg.results_dir).exists()


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_a_rate_outside_0_1(rate, configure):
    refused(configure(f"method.allocation.rate={rate}"), "allocation.rate", str(rate))


def test_a_budget_that_cannot_be_met(configure):
    refused(configure("method=l1", "method/allocation=macs", "method.allocation.macs=0.001"), "0.001", "cannot be met")


def test_a_prune_that_removes_nothing(configure):
    refused(configure("method=l1", "method.allocation.rate=0.01"), "would remove no filter", "rate")


def test_missing_data_says_where_it_looked_and_how_to_get_it(configure, tmp_path):
    cfg = configure("dataset=cifar10", "dataset.size=32", f"data_dir={tmp_path}/nowhere")
    refused(cfg, f"{tmp_path}/nowhere", "data_dir", "DATA_DIR")


def test_weights_of_another_architecture(configure, tmp_path):
    other = build({"_target_": "reprune.models.resnet", "depth": 20, "in_channels": 1})
    torch.save(other.state_dict(), tmp_path / "w.th")
    refused(configure(f"model.weights={tmp_path}/w.th"), "w.th", "architecture")


def test_weights_that_are_missing(configure, tmp_path):
    refused(configure(f"model.weights={tmp_path}/no.th"), "no.th")


def test_weights_that_are_not_finite(configure, tmp_path):
    state = build({"_target_": "reprune.models.resnet", "depth": 8, "in_channels": 1}).state_dict()
    torch.save(state | {"conv1.weight": state["conv1.weight"] / 0}, tmp_path / "w.th")
    refused(configure(f"model.weights={tmp_path}/w.th"), "w.th", "conv1.weight", "144 NaN or infinite")


def test_weights_of_more_classes(configure, tmp_path):
    other = build({"_target_": "reprune.models.resnet", "depth": 8, "in_channels": 1})
    torch.save(other.state_dict(), tmp_path / "w.th")
    refused(configure("model.classes=5", f"model.weights={tmp_path}/w.th"), "w.th", "number of classes", "[10, 64]")


class Hostile:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


def test_weights_with_a_pickle_payload(configure, tmp_path):
    (tmp_path / "w.th").write_bytes(pickle.dumps(Hostile(str(tmp_path / "executed"))))
    refused(configure(f"model.weights={tmp_path}/w.th"), "w.th", "refused")
    assert not (tmp_path / "executed").exists()


def test_a_loss_that_is_no_number_stops_and_says_at_which_step(configure):
    refused(configure("recipe.baseline.optimizer.lr=1e18"), "step", "baseline", "lr")


def test_a_sparse_method_with_a_recipe_that_has_no_sparse_part(configure):
    refused(configure("method=hgsr", "recipe=li2017", "recipe.baseline.epochs=0", "logger=none", tiny=False),
            "li2017", "sparse")


@pytest.mark.parametrize("method", [["slimming"], ["slimming", "method.penalties=null"], ["bn_tells"]])
def test_a_net_without_batch_norm_is_refused_before_anything_trains(method, configure, monkeypatch):
    """And so is one whose baseline is there already, where the method trains it further."""
    refused(configure("method=" + method[0], *method[1:], "model=narrow_alexnet", "dataset.size=32",
                      "recipe.baseline.optimizer.lr=1e18"), "batch norm")
    trained = run(configure("method=l1", "model=narrow_alexnet", "dataset.size=32"))
    monkeypatch.setattr("reprune.pipeline.fit", lambda *_, **__: pytest.fail("something trains"))
    assert trained["epochs"]["baseline"]
    with pytest.raises(UserError, match="batch norm"):
        run(configure("method=" + method[0], *method[1:], "model=narrow_alexnet", "dataset.size=32"))


def test_apoz_needs_held_out_images_before_anything_trains(configure):
    refused(configure("method=apoz", "dataset.val_size=0", "recipe.baseline.optimizer.lr=1e18"), "dataset.val_size")


def test_negative_epochs(configure):
    refused(configure("recipe.recover.epochs=-1"), "recover.epochs", "-1")


@pytest.mark.parametrize(("argument", "words"), [
    ("method=nope", ["slimming", "l1"]),
    ("experiments=li2017/nope", ["li2017/resnet56-B"]),
    ("control=nope", ["random", "l1", "scratch"]),
    ("control=random", ["error: control=random", "experiments="]),
    ("method.allocation.rate=2", ["error: allocation.rate"]),
    ("method=slimmin", ["did you mean 'slimming'?"]),
    ("metod=l1", ["did you mean 'method'?"]),
    ("method.allocation.rte=0.5", ["did you mean 'method.allocation.rate'?"]),
    ("lr=0.1", ["did you mean 'recipe.baseline.optimizer.lr' or"]),
    ("method/alloc=macs", ["did you mean 'method/allocation'?"]),
    ("seed=[1", ["[1"]),
    ("recipe.baseline.optimizer.lr=fast", ["recipe.baseline", "'str'"]),
    ("recipe.baseline.epochs=1.5", ["recipe.baseline.epochs", "1.5", "whole number"]),
    ("recipe.batch_size=0", ["recipe.batch_size", "from 1 up"]),
    pytest.param("trainer=gpu", ["trainer.accelerator=gpu", "no GPU"],
                 marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    ("method.criterion._target_=nowhere.Net", ["nowhere.Net", "method.criterion", "No module named 'nowhere'"]),
])
def test_the_command_exits_non_zero_with_the_valid_choices(argument, words, tmp_path):
    done = command.run(argument, f"output_dir={tmp_path}", cwd=tmp_path)
    assert done.returncode != 0 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "epoch" not in done.stdout and not list(tmp_path.rglob("*.ckpt"))      # nothing has trained


def test_a_sweep_shows_the_configs_of_its_cells_and_runs_nothing(tmp_path):
    done = command.run("-m", "method=l1,random", "seed=3", "--cfg", "job", cwd=tmp_path)
    first, second = done.stdout.split("\n---\n")
    assert done.returncode == 0 and first.startswith("# method=l1 seed=3\n") and "name: random" in second, done.stderr
    assert "seed: 3" in first and not list(tmp_path.iterdir())
