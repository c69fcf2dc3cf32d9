"""Whole runs on the digits, a second each: what a record promises, and that runs do not disturb each other."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import HANG
from hydra.utils import instantiate

import reprune
from reprune.data import Data
from reprune.pipeline import run
from reprune.pruning.probe import Probe, evaluate
from reprune.runs.measure import environment
from reprune.runs.store import key_of

NOTHING = {"epochs": 0, "curve": {}, "seconds": 0.0, "earlier": 0.0}          # the facts of no training
METHODS = ["random", "l1", "hgsr", "sfp", "slimming", "l1std", "ga"]


def net_of(cfg, record):
    return reprune.load(f"{cfg.output_dir}/{record['key']}/net.safetensors")


@pytest.fixture
def opened(monkeypatch):
    """What a run does, in order: the final measurement, and whatever opens the test set."""
    read, measure, done = Data.test, reprune.pipeline.measure, []
    monkeypatch.setattr(Data, "test", lambda *a, **k: done.append("test") or read(*a, **k))
    monkeypatch.setattr("reprune.pipeline.measure", lambda *a: done.append("measure") or measure(*a))
    return done


@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_with_a_smaller_net_that_reloads_to_the_accuracy_of_its_record(method, configure, opened):
    cfg = configure(f"method={method}")
    record = run(cfg)
    assert opened == ["measure", "test"]
    base, pruned = record["baseline"], record["pruned"]
    assert pruned["params"] < base["params"] and pruned["macs"] < base["macs"]
    net = net_of(cfg, record)
    data = instantiate(cfg.dataset)
    assert round(evaluate(net, data.test(250))[1], 4) == pruned["top1"]
    assert reprune.cost(net, torch.zeros(1, 1, 8, 8)) == reprune.Cost(pruned["params"], pruned["macs"])
    for name, (before, after) in record["widths"].items():
        assert net.get_submodule(name).weight.shape[0] == after <= before
    turns = sum(after < before for before, after in record["widths"].values()) if method == "ga" else 1    # by layer
    assert record["epochs"] == {"baseline": 1, "sparse": int(method in ("hgsr", "sfp", "slimming")), "recover": turns}
    assert json.loads((store_folder(cfg, record) / "record.json").read_text()) == record


def store_folder(cfg, record):
    return Path(cfg.output_dir) / record["key"]


def test_the_baseline_method_measures_the_unpruned_net(configure):
    record = run(configure("method=baseline"))
    assert record["pruned"]["top1"] == record["baseline"]["top1"]
    assert record["pruned"]["params"] == record["baseline"]["params"]


def test_methods_share_one_baseline_and_a_finished_run_is_not_repeated(configure, monkeypatch, tmp_path, capsys):
    first = run(configure("method=l1"))
    monkeypatch.setattr("reprune.pipeline.fit", lambda *a, **k: pytest.fail("trained again"))
    assert run(configure("method=l1")) == first
    assert "finished before" in capsys.readouterr().out
    monkeypatch.undo()
    cfg = configure("method=random")
    trained = []
    monkeypatch.setattr("reprune.pipeline.fit", lambda *a, **k: trained.append(a[3]) or NOTHING)
    assert run(cfg)["baseline"]["top1"] == first["baseline"]["top1"]
    assert trained == ["recover"]
    assert len(list((tmp_path / "outputs" / "baselines").iterdir())) == 1


def test_the_same_command_gives_the_same_bits_whatever_ran_before(configure, tmp_path):
    one = configure("method=hgsr")
    first = run(one)
    torch.rand(17)                                                # another state of the global generator
    run(configure("method=random", f"output_dir={tmp_path}/elsewhere"))
    two = configure("method=hgsr", f"output_dir={tmp_path}/elsewhere")
    second = run(two)
    assert first["key"] == second["key"] and first["pruned"]["top1"] == second["pruned"]["top1"]
    for (name, a), b in zip(net_of(one, first).state_dict().items(), net_of(two, second).state_dict().values(),
                            strict=True):
        assert torch.equal(a, b), name


def test_a_committed_record_names_the_hash_of_its_own_config_and_no_place_of_the_machine_it_ran_on(root):
    for file in (root / "results" / "runs").glob("*.json"):
        record = json.loads(file.read_text())
        assert record["key"] == file.stem == key_of(record["config"])
        assert not {"data_dir", "output_dir", "results_dir"} & set(record["config"]), file


def test_a_commit_is_marked_where_code_differs_from_it_and_not_where_runs_have_written(monkeypatch, tmp_path):
    code, result = tmp_path / "src" / "record.py", tmp_path / "results" / "runs" / "a.json"
    for file in (code, result):
        file.parent.mkdir(parents=True)
        file.write_text("old")
    for command in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "All"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr("reprune.runs.measure.__file__", str(code))
    commit = environment("cpu")["git"]
    result.write_text("new")
    assert len(commit) == 12 and environment("cpu")["git"] == commit
    code.write_text("new")
    assert environment("cpu")["git"] == commit + "+"


@pytest.mark.parametrize("name, counts", [
    ("src/mine.py", True), ("conf/method/mine.yaml", True), ("experiments/me/row.yaml", True), ("run.py", True),
    ("src/mine.pyc", False), ("src/__pycache__/a.py", False), ("results/runs/a.json", False), ("notes.txt", False)])
def test_a_commit_is_marked_where_source_is_not_in_it(name, counts, monkeypatch, tmp_path):
    code = tmp_path / "src" / "record.py"
    code.parent.mkdir()
    code.write_text("old")
    (tmp_path / ".gitignore").write_text("*.pyc\n__pycache__/\n")
    for command in (["init"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "All"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr("reprune.runs.measure.__file__", str(code))
    commit = environment("cpu")["git"]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("new")
    assert environment("cpu")["git"] == commit + "+" * counts


def test_another_seed_is_another_run(configure):
    one, two = run(configure("method=random")), run(configure("method=random", "seed=1"))
    assert one["key"] != two["key"] and one["baseline"]["top1"] != two["baseline"]["top1"]


@pytest.mark.parametrize("rounds", ["steps", "layer_by_layer"])
def test_rounds_reach_the_reduction_of_one_shot(rounds, configure):
    shot = run(configure("method=l1"))
    record = run(configure("method=l1", f"method/rounds={rounds}"))
    assert record["widths"] == shot["widths"]
    turns = 5 if rounds == "steps" else 3                         # resnet8: three inner groups
    assert record["epochs"]["recover"] == turns


def test_budget_with_steps_meets_the_budget(configure):
    record = run(configure("method=random", "method/allocation=macs", "method.allocation.macs=0.6",
                           "method/rounds=steps", "method.rounds.n=3"))
    assert 0.5 < record["pruned"]["macs"] / record["baseline"]["macs"] <= 0.6


def test_nothing_reads_the_test_set_before_the_final_measurement(configure, opened):
    """Of a method that selects on images; of all others see above."""
    run(configure("method=hgsr", "method/selection=loss_increase", "method.criterion.n_samples=60",
                  "method/allocation=greedy", "method.allocation.macs=0.7", "method.allocation.step_fraction=0.3"))
    assert opened == ["measure", "test"]


def test_the_best_test_epoch_is_recorded_only_where_a_recipe_asks_for_it(configure):
    assert run(configure("method=l1"))["pruned"]["top1_best"] is None
    pruned = run(configure("method=l1", "recipe.test_every_epoch=true", "recipe.recover.epochs=3"))["pruned"]
    assert pruned["top1_best"] >= pruned["top1"]


def test_distillation_is_a_penalty_any_method_can_add(configure):
    teach = ("+method.recover_penalties.kd={_target_: reprune.methods.distillation.Distillation, alpha: 0.9}",
             "recipe.recover.epochs=2")
    plain, taught = run(configure("method=l1", teach[1])), run(configure("method=l1", *teach))
    assert taught["key"] != plain["key"] and taught["pruned"]["params"] == plain["pruned"]["params"]
    one, two = net_of(configure(), plain), net_of(configure(), taught)
    assert not torch.equal(next(one.parameters()), next(two.parameters()))


def test_from_scratch_forgets_the_weights_but_keeps_the_architecture(configure):
    cfg = configure("method=l1", "recipe.recover.from_scratch=true", "recipe.recover.optimizer.lr=0")
    record, kept = run(cfg), run(configure("method=l1", "recipe.recover.optimizer.lr=0"))
    assert record["widths"] == kept["widths"]
    fresh, old = (net_of(cfg, r).conv1.weight for r in (record, kept))
    assert torch.corrcoef(torch.stack([fresh.flatten(), old.flatten()]))[0, 1].abs() < 0.5


def test_a_repair_sees_the_pruned_net(configure):
    cfg = configure("method=random")
    method = instantiate(cfg.method)
    method.repair = {"freeze": lambda net, probe: net.requires_grad_(False)}
    data = instantiate(cfg.dataset)
    net = reprune.models.build({"_target_": "reprune.models.resnet", "depth": 8, "in_channels": 1})
    turn, probe = next(iter(method.rounds(dict))), Probe(net, torch.zeros(1, 1, 8, 8), data)
    smaller = reprune.pipeline.prune(method, turn, probe)
    assert not any(p.requires_grad for p in smaller.parameters())


def test_wandb_offline_says_how_to_upload_and_its_id_is_the_key(configure, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = configure("method=l1", "logger=wandb", f"logger.timeout={HANG}")
    record = run(cfg)
    assert f"-{record['key']}" in capsys.readouterr().out.split("wandb sync ")[1].splitlines()[0]
    assert list(store_folder(cfg, record).glob(f"wandb/offline-run-*-{record['key']}/*.wandb"))


def test_csv_has_a_curve_per_stage(configure):
    cfg = configure("method=hgsr", "logger=csv")
    record = run(cfg)
    for stage in ("baseline", "sparse", "recover"):
        text = (store_folder(cfg, record) / stage / "metrics.csv").read_text()
        assert f"{stage}/top1" in text
    assert "sparse/penalty/hgsr" in (store_folder(cfg, record) / "sparse" / "metrics.csv").read_text()


def test_the_published_resnet20_is_9173_on_the_real_test_set_and_its_pruned_net_reloads(configure, cifar10, weights):
    cfg = configure("model=resnet20", "dataset=cifar10", "dataset.normalize=imagenet", f"data_dir={cifar10}",
                    f"model.weights={weights}/resnet20-12fca82f.th", "method=l1", "method/allocation=macs",
                    "method.allocation.macs=0.8", "recipe.recover.epochs=0", "logger=none", tiny=False)
    published = reprune.models.build(cfg.model).eval()
    assert round(evaluate(published, instantiate(cfg.dataset).test(250))[1], 4) == 91.73
    cfg.dataset.limit = 1000                                      # of its images from here on
    record, loader = run(cfg), instantiate(cfg.dataset).test(250)
    assert record["baseline"]["params"] == 269_722
    assert record["baseline"]["top1"] == round(evaluate(published, loader)[1], 4)
    assert record["pruned"]["macs"] <= 0.8 * record["baseline"]["macs"]
    assert round(evaluate(net_of(cfg, record), loader)[1], 4) == record["pruned"]["top1"] > 20
