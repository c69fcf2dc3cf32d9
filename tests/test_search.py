"""A search is a set of trials to obtain: cut off and typed again it ends as one that was not."""

import json
import math
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus

optuna = pytest.importorskip("optuna", reason="pip install -e '.[search]'")
pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install -e '.[launchers]'")
from hydra_plugins.reprune_search._study import Search, _digest  # noqa: E402

LONGER = ["recipe.baseline.epochs=4", "recipe.sparse.epochs=3", "recipe.recover.epochs=2", "method=hgsr"]
SPACE = ["method.penalties.hgsr.weight=tag(log,interval(1e-6,1e-3))", "method.allocation.rate=interval(0.1,0.5)"]


def command(out, *overrides: str) -> list[str]:
    return [sys.executable, ROOT / "run.py", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", *TINY, *LONGER,
            *SPACE, "search.macs=0.6", f"output_dir={out}/outputs", *overrides]


def trials(out, name: str | None = None) -> list:
    storage = f"sqlite:///{out}/outputs/search.db"
    names = [s.study_name for s in optuna.get_all_study_summaries(storage)]
    return optuna.load_study(name or names[0], storage).trials


def test_a_search_over_another_row_or_its_control_is_another_study_and_places_make_none():
    given = ["seed=interval(1,2)", "experiments=li2017/vgg16-A"]
    assert _digest(given) == _digest([*given[::-1], "output_dir=there", "logger=none"])
    others = [given[:1], [given[0], "experiments=half/a"], [*given, "control=random"], [*given, "control=l1"]]
    assert len({_digest(each) for each in [given, *others]}) == 5


def test_a_search_that_is_killed_goes_on_and_ends_as_one_that_was_not(tmp_path):
    with subprocess.Popen(command(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("trial 0:"):
                break
        else:
            pytest.fail(said)
        while not list(tmp_path.glob("outputs/*/stages/sparse.ckpt")):        # of trial 1
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert [t.state.name for t in trials(tmp_path)] == ["COMPLETE", "RUNNING"]
    drawn = trials(tmp_path)[1].params

    both = ["hydra.sweeper.n_jobs=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]     # its processes cost time
    again = subprocess.run(command(tmp_path, *both), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "1 of 3 trials done" in again.stdout and "sparse: 3 epochs, going on where it was cut off" in again.stdout
    found = trials(tmp_path)
    assert [t.state.name for t in found] == ["COMPLETE"] * 3 and found[1].params == drawn
    records = [json.loads(file.read_text()) for file in tmp_path.glob("outputs/*/record.json")]
    assert len(records) == 3
    for record in records:
        config, pruned = record["config"]["method"], record["pruned"]
        (trial,) = (t for t in found if t.params["method.allocation.rate"] == config["allocation"]["rate"] and
                    t.params["method.penalties.hgsr.weight"] == config["penalties"]["hgsr"]["weight"])
        excess = 100 * (pruned["macs"] / record["baseline"]["macs"] - 0.6)
        assert trial.value == (-round(excess, 4) if excess > 0 else pruned["val_top1"])
    assert any(r["pruned"]["val_top1"] != r["pruned"]["top1"] for r in records)         # else the above shows nothing
    (best,) = (line for line in again.stdout.splitlines() if line.startswith("best of 3 trials"))
    record = json.loads((tmp_path / "outputs" / best.split("run ")[1] / "record.json").read_text())
    assert f"{max(t.value for t in found)}" in best and record["status"] == "done"


class Launcher:
    """Ends every trial with what `worth` says of its rate: nan for one that fails."""

    def __init__(self, worth, dies_at: int | None = None):
        self.worth, self.dies_at, self.rates = worth, dies_at, []

    def launch(self, cells, initial_job_idx):
        if len(self.rates) == self.dies_at:
            raise KeyboardInterrupt
        rates = [float(dict(o.split("=") for o in cell)["method.allocation.rate"]) for cell in cells]
        self.rates += rates
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=self.worth(rate)) for rate in rates]


@pytest.fixture
def search(tmp_path, monkeypatch):
    """search(launcher, "override", ...): the same study every time."""
    monkeypatch.setenv("REPRUNE_ROOT", str(ROOT))

    def searched(launcher, *overrides: str, space: str = "method.allocation.rate=interval(0.1,0.9)"):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("config", ["hydra/sweeper=optuna", "method=l1", f"output_dir={tmp_path}/outputs", *overrides],
                          return_hydra_config=True)
            options = {k: v for k, v in cfg.hydra.sweeper.items() if not k.startswith("_")}
            one = Search(**options)
            one.config, one.launcher = cfg, launcher
            one._report = lambda *_: None                         # needs Hydra's loader; see the whole search above
            one.sweep(["method=l1", *([space] if space else [])])
        return trials(tmp_path)

    return searched


def test_what_failed_is_tried_again_with_the_same_parameters_and_does_not_count(search):
    first = Launcher(lambda rate: math.nan if rate > 0.5 else rate)
    found = search(first, "hydra.sweeper.n_trials=5")
    failed = [rate for rate in first.rates if rate > 0.5]
    assert 0 < len(failed) < 5 == len(found)
    second = Launcher(lambda rate: rate)
    found = search(second, "hydra.sweeper.n_trials=5")
    assert second.rates == failed and sum(t.state.name == "COMPLETE" for t in found) == 5
    third = Launcher(lambda rate: rate)
    search(third, "hydra.sweeper.n_trials=5")
    assert third.rates == []
    search(third, "hydra.sweeper.n_trials=7")
    assert len(third.rates) == 2


def test_batches_that_were_running_are_run_again(search):
    first = Launcher(lambda rate: rate, dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        search(first, "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2")
    second = Launcher(lambda rate: rate)
    found = search(second, "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2")
    assert len(found) == 6 and len(second.rates) == 4
    assert len({t.params["method.allocation.rate"] for t in found}) == 6


def test_a_search_that_was_cut_off_draws_what_it_would_have_drawn(search):
    whole = Launcher(lambda rate: -abs(rate - 0.3))
    search(whole, "hydra.sweeper.n_trials=14", "hydra.sweeper.study_name=whole")      # the sampler learns after ten
    parts = [Launcher(whole.worth, dies_at) for dies_at in (3, 9, None)]
    for part in parts[:2]:
        with pytest.raises(KeyboardInterrupt):
            search(part, "hydra.sweeper.n_trials=14", "hydra.sweeper.study_name=parts")
    search(parts[2], "hydra.sweeper.n_trials=14", "hydra.sweeper.study_name=parts")
    assert sum((part.rates for part in parts), []) == whole.rates and len(set(whole.rates)) == 14


@pytest.mark.parametrize(("overrides", "space", "said"), [
    (["dataset.val_size=0"], "method.allocation.rate=interval(0.1,0.9)", "dataset.val_size is 0"),
    (["search.macs=3"], "method.allocation.rate=interval(0.1,0.9)", "got 3"),
    ([], "", "nothing to search")])
def test_a_search_that_cannot_be_judged_ends_before_its_first_run(search, overrides, space, said):
    launcher = Launcher(lambda rate: rate)
    with pytest.raises(SystemExit, match=said) as error:
        search(launcher, *overrides, space=space)
    assert str(error.value).startswith("error:") and "\n" not in str(error.value) and not launcher.rates


def test_a_named_study_is_over_one_space(search):
    name = "hydra.sweeper.study_name=mine"
    search(Launcher(lambda rate: rate), name, "hydra.sweeper.n_trials=1")
    with pytest.raises(SystemExit, match="other keys or intervals"):
        search(Launcher(lambda rate: rate), name, space="method.allocation.rate=interval(0.2,0.4)")
