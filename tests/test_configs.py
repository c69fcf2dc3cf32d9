"""Every config composes, and its objects can be made."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from reprune import models
from reprune.runs.compose import composing
from reprune.runs.store import baseline_key, resolved
from reprune.sweeps.cells import expand

ROOT = Path(__file__).resolve().parent.parent
UNPRUNED = {file.stem for file in (ROOT / "conf/method").glob("*.yaml") if "\nprunes: false" in file.read_text()}


def options(folder: str) -> list[str]:
    return sorted(p.stem for p in (ROOT / "conf" / folder).glob("*.yaml"))


@pytest.mark.parametrize("group", ["model", "dataset", "method", "recipe", "trainer", "logger", "method/allocation",
                                   "method/rounds"])
def test_every_choice_of_a_group_composes(group, configure):
    for choice in options(group):
        extra = ["method=l1"] if "/" in group else []
        extra += ["model.arch=resnet18"] if choice == "torchvision" else []
        config = OmegaConf.to_container(configure(*extra, f"{group}={choice}", tiny=False), resolve=True)
        assert config["seed"] == 0


@pytest.fixture(scope="module")
def allocations():
    """Each in a method, which may say more of it: {choice: that method's config}"""
    with composing(ROOT) as compose:
        return {choice: OmegaConf.to_container(compose(["method=random", f"method/allocation={choice}"]).method)
                for choice in options("method/allocation")}


@pytest.mark.parametrize("method", sorted(set(options("method")) - UNPRUNED))
def test_every_method_fills_its_sockets_with_every_allocation_and_rounds(method, configure, allocations):
    adds = OmegaConf.load(ROOT / f"conf/method/{method}.yaml").get("allocation", {})
    for node in allocations.values():
        filled = OmegaConf.merge({"method": node, "measure": {"batch_size": 1}}, {"method": {"allocation": adds}})
        assert callable(instantiate(filled.method.allocation))
    turn, rounds = options("method").index(method), options("method/rounds")
    choices = [f"method/allocation={list(allocations)[turn % len(allocations)]}",
               f"method/rounds={rounds[turn % len(rounds)]}"]
    assert instantiate(configure(f"method={method}", *choices).method).name == method


@pytest.mark.parametrize("repair", options("method/repair"))
def test_every_repair_joins_any_method(repair, configure):
    for choice in ("method=l1", "experiments=half/resnet20-ga"):
        method = instantiate(configure(choice, f"+method/repair={repair}", tiny=False).method)
        assert list(method.repair) == [repair] and callable(method.repair[repair])


@pytest.mark.parametrize(("allocation", "option"), [
    ("sensitivity", "spread=global"), ("sensitivity", "normalize=max"), ("sensitivity", "rate=0.3"),
    ("greedy", "rate=0.3"), ("macs", "rate=0.3"), ("per_layer", "rate=0.3")])
def test_an_option_that_an_allocation_does_not_read_is_refused(allocation, option, configure):
    with pytest.raises(InstantiationException, match=option.split("=")[0]):
        instantiate(configure("method=l1", f"method/allocation={allocation}", f"+method.allocation.{option}").method)


@pytest.mark.parametrize("model", [m for m in options("model") if m != "torchvision"])
def test_every_model_can_be_built_from_its_node(model, configure):
    if model == "timm":
        pytest.importorskip("timm", reason="pip install 'reprune[zoo]'")
    node = OmegaConf.to_container(configure(f"model={model}", tiny=False).model, resolve=True)
    assert node["name"] == model
    assert models.build(node)


@pytest.mark.parametrize("recipe", options("recipe"))
def test_every_part_of_a_recipe_makes_an_optimiser_and_a_scheduler(recipe, configure):
    cfg = configure(f"recipe={recipe}", tiny=False)
    net = models.build({"_target_": "reprune.models.resnet", "depth": 8})
    for part in ("baseline", "sparse", "recover"):
        if cfg.recipe[part] is None:
            continue
        optimizer = instantiate(cfg.recipe[part].optimizer)(net.parameters())
        scheduler = instantiate(cfg.recipe[part].scheduler)
        assert optimizer.param_groups[0]["lr"] > 0
        assert scheduler is None or scheduler(optimizer).last_epoch == 0


def test_the_penalised_training_of_mitsuno2020_is_its_baseline_once_more_from_fresh_weights(configure):
    recipe = OmegaConf.to_container(configure("recipe=mitsuno2020", tiny=False).recipe, resolve=True)
    assert recipe["sparse"] == {**recipe["baseline"], "from_scratch": True}
    for part in ("baseline", "sparse", "recover"):
        assert recipe[part]["scheduler"]["step_size"] == int(recipe[part]["epochs"] / 3)
        assert recipe["paper_epochs"][part] == recipe[part]["epochs"]


def test_recipes_that_start_from_the_usual_baseline_share_it(configure):
    keys = {baseline_key(resolved(configure(f"recipe={name}", tiny=False))) for name in ("cifar", "hu2018", "sun2019")}
    assert len(keys) == 1


def test_the_command_sweeps_globs_and_shows_its_config(tmp_path):
    command = [sys.executable, ROOT / "run.py", "experiments=li2017/resnet56-B", "--cfg", "job"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "pruned: 93.06" in shown and "layer1: 0.6" in shown


def test_a_glob_over_rows_becomes_the_list_that_hydra_sweeps():
    pattern, given = "experiments=glob(li2017/resnet56-?)", "experiments=li2017/vgg16-A,li2017/resnet56-A"
    assert expand([pattern, "seed=0"], ROOT) == ["experiments=li2017/resnet56-A,li2017/resnet56-B", "seed=0"]
    assert expand([given], ROOT) == [given]


def test_null_is_no_row_and_no_control():
    given = ["experiments=null,li2017/vgg16-A", "control=null,random", "control=choice(null,l1)", "method=null"]
    none = ["experiments=[],li2017/vgg16-A", "control=[],random", "control=choice([],l1)", "method=null"]
    assert expand(given, ROOT) == none == expand(none, ROOT)
