"""control=random, l1 or scratch: the control of any row, at its budget, in its rounds, with its recipe."""

import copy
import json
from functools import cache

import command
import pytest
import torch
from conftest import EPOCHS, ROOT, TINY
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf

import reprune
import reprune.pipeline
from reprune import models
from reprune.__main__ import main
from reprune.errors import UserError
from reprune.pipeline import run
from reprune.pruning.probe import Probe
from reprune.runs.control import settle
from reprune.runs.store import baseline_key, key_of, resolved

ROWS = sorted(file.relative_to(ROOT / "experiments").with_suffix("").as_posix()
              for file in (ROOT / "experiments").glob("*/*.yaml"))
SHORT = {"lin2020sketch/resnet110": {"macs"}, "lin2020sketch/resnet56-0.6": {"params"},       # papers.yaml says so
         "lin2020hrank/googlenet": {"params"}}
SPREAD = {"groups", "skip", "min_filters", "min_keep", "multiple"}            # which filters a budget may come from


class Composed:
    """As the command composes: with Hydra once for each row and once for each control, not for each pair of them."""

    def __init__(self, compose):
        self.compose, self.rows = compose, cache(lambda row: compose([f"experiments={row}"]))
        self.controls = {name: compose.loader.load_configuration("config", [f"control={name}"], RunMode.RUN).control
                         for name in ("random", "l1", "scratch")}

    def __call__(self, row, name):
        cfg = copy.deepcopy(self.rows(row))
        OmegaConf.update(cfg, "control", self.controls[name])
        settle(cfg, row)
        return cfg


@pytest.fixture(scope="module")
def composed(compose):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRUNE_ROOT", str(ROOT))
        yield Composed(compose)


@cache
def look(model, channels, size):
    """At an untrained net: what a budget leaves of it does not depend on its weights."""
    node = OmegaConf.to_container(OmegaConf.create(model))
    if node["_target_"] == "reprune.models.timm":
        pytest.importorskip("timm")
    elif not node["_target_"].startswith("reprune."):             # as the command does with what is typed
        models.trust(node["_target_"])
    return Probe(models.build(node), torch.zeros(1, channels, size, size))


def seen(cfg):
    """Its net, of ten classes, for small images: what is looked at depends on neither, and many rows share one."""
    model = OmegaConf.create(OmegaConf.to_container(cfg.model, resolve=True))
    if "classes" in model:
        model.classes = 10
    return OmegaConf.to_yaml(model), cfg.dataset.channels, min(cfg.dataset.size, 64)


def probe(cfg):
    return look(*seen(cfg))


def left(cfg, seed=0):
    """The plan that its allocation makes of random scores; many rows prune the same net to the same budget."""
    return plan(OmegaConf.to_yaml(cfg.method.allocation, resolve=True), *seen(cfg), seed)


@cache
def plan(allocation, model, channels, size, seed):
    probe = look(model, channels, size)
    torch.manual_seed(seed)
    scores = {group.name: torch.rand(group.size) for group in probe.groups}
    return instantiate(OmegaConf.create(allocation))(scores, probe)


@cache
def with_one_more(allocation, model, channels, size, unit):
    """What is left at most with one filter more in some group."""
    probe, kept = look(model, channels, size), plan(allocation, model, channels, size, 0)
    return max(getattr(probe.cost({**kept, name: one_more(mask)}), unit) for name, mask in kept.items())



def budgeted(cfg):
    """Does the row say how much goes? A threshold does not, nor a dynamic net."""
    allocation = cfg.method.get("allocation") or {}
    return any(allocation.get(name) for name in ("macs", "params", "rate", "rates"))


@pytest.mark.parametrize("row", ROWS, scope="module")    # one row after another: composed once
def test_a_row_composes_and_its_net_can_be_built(row, composed):
    cfg = composed.rows(row)
    method = instantiate(cfg.method)
    assert method.prunes or method.trains_sparse or method.codec is not None
    assert probe(cfg).groups
    if cfg.claim is not None:
        assert cfg.claim.source and cfg.claim.provenance
        assert cfg.recipe.paper_epochs is not None


@pytest.mark.parametrize("row", ROWS, scope="module")    # one row after another: composed once
def test_random_and_l1_prune_the_row_to_its_budget_by_another_criterion(row, composed):
    own = composed.rows(row)
    if not budgeted(own):
        with pytest.raises(UserError, match=rf"^{row} has no control=l1: [^\n]*(states no budget|prunes nothing)"):
            composed(row, "l1")
        return
    for name in ("random", "l1"):
        cfg = composed(row, name)
        method, there = resolved(cfg)["method"], resolved(own)["method"]
        assert instantiate(cfg.method).name == name and not instantiate(cfg.method).trains_sparse
        assert (cfg.control, cfg.claim) == (name, None) or (cfg == own and cfg.control is None)
        assert method.keys() <= {"_target_", "name", "criterion", "allocation", "rounds", "recover_penalties"}
        assert {part: method.get(part) for part in ("rounds", "recover_penalties")} == {
            part: there.get(part) for part in ("rounds", "recover_penalties")}
        assert all(method["allocation"][limit] == there["allocation"][limit] for limit in SPREAD)
        assert key_of({**resolved(cfg), "method": 0}) == key_of({**resolved(own), "method": 0})
        kept, allocation = left(cfg), there["allocation"]
        if unit := next((unit for unit in ("macs", "params") if allocation.get(unit)), None):
            more = with_one_more(OmegaConf.to_yaml(cfg.method.allocation, resolve=True), *seen(cfg), unit)
            budget = allocation[unit] * getattr(probe(cfg).original.cost, unit)
            assert getattr(probe(cfg).cost(kept), unit) <= budget < more
        elif "rate" in allocation and "rounding" not in allocation:               # one threshold for the whole net
            assert abs(sum(count(kept).values()) - sum(count(left(own, seed=1)).values())) <= len(kept)
        else:
            assert count(kept) == count(left(own, seed=1))


def count(plan):
    return {name: int(mask.sum()) for name, mask in plan.items()}


def one_more(mask):
    """With one filter that was to go."""
    mask = mask.clone()
    mask[(~mask).nonzero()[:1]] = True
    return mask


@pytest.mark.parametrize("row", ROWS, scope="module")    # one row after another: composed once
def test_a_plan_that_needs_no_data_goes_as_far_as_the_row_claims(row, composed):
    """At one rate, or at those of a list: else its verdict would be known before it has run."""
    cfg = composed.rows(row)
    allocation, claim = cfg.method.get("allocation") or {}, cfg.claim or {}
    if (allocation.get("_target_") not in ("reprune.pruning.Budget", "reprune.pruning.PerLayer")
            or allocation.get("spread") == "global" or cfg.dataset.size > 64):
        return
    now, then = probe(cfg).cost(left(cfg)), probe(cfg).original.cost
    short = {}
    for what in ("params", "macs"):
        claimed = max((claim.get(f"{what}_drop{end}") or 0 for end in ("", "_min", "_max")), default=0)
        short[what] = claimed - 100 * (1 - getattr(now, what) / getattr(then, what))
    assert {what for what, gap in short.items() if gap > 0.5} == SHORT.get(row, set()), short


@pytest.mark.parametrize("row", ROWS, scope="module")    # one row after another: composed once
def test_scratch_is_the_row_and_then_its_baselines_training_from_fresh_weights(row, composed):
    own = composed.rows(row)
    if not own.method.get("allocation"):
        with pytest.raises(UserError, match="prunes nothing"):
            composed(row, "scratch")
        return
    cfg = composed(row, "scratch")
    if cfg == own:                                                # it is trained from scratch itself
        assert cfg.control is None and own.recipe.recover.from_scratch
        return
    ours, theirs = resolved(cfg), resolved(own)
    assert (cfg.control, cfg.claim) == ("scratch", None) and instantiate(cfg.method).prunes
    assert ours["recipe"]["recover"] == {**theirs["recipe"]["baseline"], "from_scratch": True}
    assert not instantiate(cfg.method).recover_penalties
    if theirs["method"]["rounds"]["_target_"] != "reprune.pruning.OneShot":
        assert ours["recipe"]["between"] == theirs["recipe"].get("between", theirs["recipe"]["recover"])
        assert ours["method"]["between_penalties"] == theirs["method"].get("recover_penalties", {})
    for config in (ours, theirs):                                 # all else is the row's
        for part in ("recover", "between", "paper_epochs"):
            config["recipe"].pop(part, None)
        for part in ("recover_penalties", "between_penalties"):
            config["method"].pop(part, None)
    assert key_of(ours) == key_of(theirs) and baseline_key(ours) == baseline_key(theirs)


@pytest.mark.parametrize("row", ROWS, scope="module")    # one row after another: composed once
def test_without_a_control_a_row_has_the_key_it_always_had(row, composed):
    config = resolved(composed.rows(row))
    assert config.pop("control") is None and key_of(config) == key_of({**config, "control": "any"})


def test_the_command_and_hydra_alone_compose_the_same_control(composed):
    row = "hu2018/svhn-vgg16"
    for name in composed.controls:
        cfg = composed.compose([f"experiments={row}", f"control={name}"])
        assert cfg == composed(row, name) and cfg.experiment == row


def test_a_control_is_the_run_one_would_type_and_takes_over_what_is_typed(composed):
    typed = ["model=resnet8", "seed=3", "dataset.normalize=imagenet", "recipe.recover.epochs=2"]
    l1 = ["method=l1", "method/allocation=params", "method.allocation.params=0.3", "method.allocation.groups=inner"]
    cfg, same = (composed.compose(overrides) for overrides in (
        ["experiments=mitsuno2020/cifar10-resnet", "control=l1", *typed, "method.allocation.params=0.3"],
        ["dataset=cifar10", "recipe=mitsuno2020", *l1, *typed]))
    assert key_of(resolved(cfg)) == key_of(resolved(same))
    typed, said = (composed.compose(["experiments=sun2019/vgg16", "control=l1", *more]).method.criterion.p
                 for more in (["control.method.criterion.p=2"], []))
    assert (typed, said) == (2, 1)


@pytest.mark.parametrize(("row", "name"), [("li2017/resnet56-B", "l1"), ("half/resnet20-random", "random")])
def test_a_control_that_changes_nothing_is_the_row_itself(row, name, composed):
    assert composed(row, name) == composed.rows(row) and composed(row, name).control is None


def test_no_row_is_null(composed):
    cfg = composed.compose(["experiments=[]", "control=[]"])
    assert cfg.experiment is None and cfg.control is None and cfg == composed.compose([])


@pytest.mark.parametrize(("overrides", "told"), [
    (["control=l1"], "control=l1 is the control of a row: give experiments=PAPER/ROW too"),
    (["experiments=hu2018/svhn-vgg16", "method.allocation.params=null", "control=random"],
     "hu2018/svhn-vgg16 has no control=random: its allocation (reprune.pruning.Sensitivity) states no budget"),
    (["experiments=li2017/vgg16-A", "recipe.baseline=null", "control=scratch"],
     "li2017/vgg16-A has no control=scratch: recipe 'li2017' has no baseline part"),
    (["experiments=li2017/vgg16-A", "method.prunes=false", "control=scratch"],
     "li2017/vgg16-A has no control=scratch: method 'l1' prunes nothing")])
def test_what_has_no_such_control_is_refused_in_one_line(overrides, told, composed):
    with pytest.raises(UserError) as error:
        composed.compose([f"+{o}" if "prunes" in o else o for o in overrides])
    assert str(error.value).startswith(told) and "\n" not in str(error.value)


def test_scratch_prunes_as_the_row_does_and_ends_with_fresh_weights_and_the_baselines_training(composed, tmp_path,
                                                                                             monkeypatch):
    """In two rounds, with a teacher; what the second one takes depends on the training between them. At a learning rate
    of 0, the weights in the end are those that the last training began with."""
    options = [*TINY, f"output_dir={tmp_path}", f"results_dir={tmp_path}/results", "experiments=sun2019/resnet18",
               "dataset=digits", "recipe=smoke", "recipe.baseline.epochs=2", "recipe.baseline.optimizer.lr=0",
               "recipe.recover.epochs=1", "method/rounds=steps", "method.rounds.n=2",
               "+method.recover_penalties.kd={_target_: reprune.methods.distillation.Distillation}"]
    fit, fits = reprune.pipeline.fit, []

    def spy(net, data, cfg, stage, part, **given):
        before = copy.deepcopy(net)
        ran = fit(net, data, cfg, stage, part, **given)
        fits.append((stage, part, ran["epochs"], list(given.get("penalties") or []), before))
        return ran

    monkeypatch.setattr("reprune.pipeline.fit", spy)
    row, control = (run(composed.compose([*options, *more])) for more in ([], ["control=scratch"]))
    assert [one[:4] for one in fits] == [
        ("baseline", "baseline", 2, []), ("recover-0", "recover", 1, ["kd"]), ("recover", "recover", 1, ["kd"]),
        ("recover-0", "between", 1, ["kd"]), ("recover", "recover", 2, [])]
    theirs, ours = fits[2][-1], fits[4][-1]
    assert control["widths"] == row["widths"] and control["claim"] is None and control["key"] != row["key"]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    fresh = reprune.load(f"{tmp_path}/{control['key']}/net.safetensors")
    pair = torch.stack([fresh.conv1.weight.flatten(), ours.conv1.weight.flatten()])
    assert torch.corrcoef(pair)[0, 1].abs() < 0.5


def test_a_sweep_over_controls_runs_each_once_and_status_names_them(root, tmp_path, capsys, monkeypatch):
    given = [*TINY, *EPOCHS, f"output_dir={tmp_path}/outputs", f"results_dir={tmp_path}/results",
             "experiments=null,mitsuno2020/own-digits", "control=null,random"]
    for done, before in ((3, 0), (0, 3)):                         # the fourth is the control of no row
        ended = command.run("-m", *given, cwd=tmp_path)
        assert f"4 cells: {done} done, {before} finished before, 1 failed" in ended.stdout, ended.stderr
        assert "control=random is the control of a row" in ended.stderr and "Traceback" not in ended.stderr
        assert ended.stdout.count("finished before, nothing to do") == before
    records = [json.loads(file.read_text()) for file in tmp_path.glob("outputs/*/record.json")]
    assert {(r["experiment"], r["config"]["control"], r["method"]) for r in records} == {
        (None, None, "hgsr"), ("mitsuno2020/own-digits", None, "hgsr"), ("mitsuno2020/own-digits", "random", "random")}
    assert len(list((tmp_path / "results/runs").iterdir())) == 2

    monkeypatch.chdir(root)
    assert main(["status", *given, "--all"]) == 1
    said = capsys.readouterr().out
    assert "4 cells: 3 done, 1 failed" in said
    assert all(f"experiments={row} control={name}" in said for row in ("[]", "mitsuno2020/own-digits")
               for name in ("[]", "random"))
