"""Schedules follow the epochs of their stage: those of the papers, fewer of them, or a round's."""

import pytest
import torch
from hydra.types import RunMode
from hydra.utils import instantiate
from test_configs import options

from reprune.pipeline import run
from reprune.runs.control import settle

PAPERS = {("cifar", "baseline"): [100, 150], ("cifar", "recover"): [20, 30], ("hu2018", "baseline"): [100, 150],
          ("sun2019", "baseline"): [100, 150], ("sun2019", "recover"): [20, 30], ("li2017", "baseline"): [80, 120],
          ("mitsuno2020", "baseline"): 33, ("mitsuno2020", "sparse"): 33, ("mitsuno2020", "recover"): 13}


@pytest.mark.parametrize(("recipe", "part"), PAPERS)
def test_at_the_papers_epochs_they_are_the_papers(recipe, part, configure):
    scheduler = configure(f"recipe={recipe}", tiny=False).recipe[part].scheduler
    assert scheduler.get("milestones", scheduler.get("step_size")) == PAPERS[recipe, part]


def rates(recipe):
    """The learning rate of every epoch, as a share of the first."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = instantiate(recipe.scheduler)(optimizer), []
    for _ in range(recipe.epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("recipe", options("recipe"))
def test_a_recipe_that_is_cut_short_keeps_its_shape(recipe, configure):
    whole = configure(f"recipe={recipe}", tiny=False).recipe
    for part in ("baseline", "sparse", "recover"):
        if whole[part] is None or whole[part].scheduler is None:
            continue
        whole[part].epochs = 1000
        long = rates(whole[part])
        for epochs in (1, 2, 3, 5, 8, 20, 37):
            whole[part].epochs = epochs
            short = rates(whole[part])
            assert len(short) == epochs and short[0] in (1, long[0])              # warmed up, if long enough
            for epoch, rate in enumerate(short):                  # what the long one has there, give or take an epoch
                there = long[max(0, 1000 * (epoch - 1) // epochs):1000 * (epoch + 1) // epochs + 1]
                assert min(there) - 1e-6 <= rate <= max(there) + 1e-6, (part, epochs, short)


@pytest.mark.parametrize("control", [None, "random", "scratch"])
def test_a_schedule_ends_with_its_round(control, compose, configure, monkeypatch):
    ended = []

    def train(module, loaders, cfg, stage, epochs, *_):
        ended.append((stage, epochs, module._scheduler.keywords["T_max"]))

    monkeypatch.setattr("reprune.training.classifier.train", train)
    cfg = configure("recipe=smoke", "method=l1", "method/rounds=steps", "method.rounds.n=2", "method.rounds.epochs=2",
                    "recipe.recover.epochs=7", "recipe.baseline.epochs=4")
    if control:
        cfg.control = compose.loader.load_configuration("config", [f"control={control}"], RunMode.RUN).control
        settle(cfg, "some2020/row")
    run(cfg)
    last = 4 if control == "scratch" else 7
    assert ended == [("baseline", 4, 4), ("recover-0", 2, 2), ("recover", last, last)]
