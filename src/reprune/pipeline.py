"""One run, top to bottom: cfg -> baseline -> sparse training -> rounds of prune and recover -> record."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from reprune import models
from reprune.data import Data
from reprune.errors import UserError
from reprune.pruning.allocation import keep_best, removed
from reprune.pruning.probe import Probe
from reprune.pruning.rounds import Round
from reprune.pruning.sockets import Method
from reprune.runs.fingerprint import fingerprint
from reprune.runs.loggers import open_logger
from reprune.runs.measure import SCHEMA, Stopwatch, environment, group_norms, measure, show, timed
from reprune.runs.store import Store
from reprune.structure.cost import widths
from reprune.structure.groups import Plan
from reprune.structure.surgery import remove
from reprune.training.checkpoints import spent
from reprune.training.classifier import PruningCallback, TestCurve, TrainingCurve, derive, device, fit, seeded


def run(cfg: DictConfig) -> dict:
    """Does what is missing of the run `cfg` describes. -> its record"""
    store = Store(cfg)
    if (record := store.finished()) and not cfg.force:
        return _skip(cfg, record, store)
    with store.alone():
        if (record := store.finished()) and not cfg.force:        # by the process this one has waited for
            return _skip(cfg, record, store)
        return _attempt(cfg, store)


def _skip(cfg: DictConfig, record: dict, store: Store) -> dict:
    print(f"{store.key}: finished before, nothing to do (force=true runs it again)")
    record = store.serve(record, cfg.experiment)
    show(record, store.folder)
    return record


def _attempt(cfg: DictConfig, store: Store) -> dict:
    watch, method = Stopwatch(), instantiate(cfg.method)
    data: Data = instantiate(cfg.dataset)
    logger = open_logger(cfg, store)
    try:
        record = _run(cfg, store, data, method, logger, watch)
    except BaseException:
        logger.close(failed=True)
        raise
    logger.close(record)
    show(record, store.folder)
    return record


def _run(cfg: DictConfig, store: Store, data: Data, method: Method, logger: Any, watch: Stopwatch) -> dict:
    example = torch.zeros(1, data.channels, data.size, data.size, device=device(cfg))

    look = partial(Probe, example=example, data=data, seed=derive(cfg.seed, "probe"),
                   batch_size=cfg.recipe.eval_batch_size)

    def stage(name: str, part: str, make: Callable[[Path], tuple[nn.Module, dict]]) -> tuple[nn.Module, dict]:
        """Done once, and found again by an attempt that goes on after a break."""
        net, facts = store.stage(name, timed(make))
        watch.add(part, facts["seconds"])
        return net.to(example.device), facts

    with watch("baseline"):
        baseline, found = find_baseline(cfg, store, data, example, logger, watch)
    net, epochs, norms = baseline, {"baseline": found["epochs"], "sparse": 0, "recover": 0}, {}
    curves = {"baseline": found.get("curve")}                     # stages of earlier versions have none

    if method.trains_sparse:
        def train_sparse(unfinished: Path) -> tuple[nn.Module, dict]:
            net, curve = copy.deepcopy(baseline), TrainingCurve()
            silencing = [PruningCallback(method, look, method.silence_every)] if method.silence_every else []
            ran = fit(net, data, cfg, "sparse", "sparse", penalties=method.penalties, callbacks=[curve, *silencing],
                      teacher=teacher(baseline, method.penalties), logger=logger.stage("sparse"), unfinished=unfinished)
            return net, {"epochs": ran, "curve": curve.means, "group_norms": group_norms(look(net))}

        net, facts = stage("sparse", "sparse", train_sparse)
        epochs["sparse"], norms, curves["sparse"] = facts["epochs"], facts["group_norms"], facts.get("curve")

    before, best, turns = net, [], []
    if method.prunes:
        first = look(net)
        with watch("prune"):
            turns = store.facts("rounds", lambda: [asdict(t) for t in method.rounds(lambda: allocate(method, first))])
    for number, turn in enumerate(Round(**t) for t in turns):
        def cut(_: Path) -> tuple[nn.Module, dict]:
            return prune(method, turn, look(net, share=turn.share, original=first.original)), {}

        def recover(unfinished: Path) -> tuple[nn.Module, dict]:
            net, curve, tested = copy.deepcopy(before), TrainingCurve(), TestCurve(data, cfg)
            name = "recover" if turn.last else f"recover-{number}"
            part = "recover" if turn.last or "between" not in cfg.recipe else "between"
            penalties = method.recover_penalties if turn.last else method.between_penalties
            ran = fit(net, data, cfg, name, part, epochs=turn.epochs, penalties=penalties,
                      teacher=teacher(baseline, penalties), logger=logger.stage(name),
                      callbacks=[curve] + [tested] * (cfg.recipe.test_every_epoch and turn.last), unfinished=unfinished)
            return net, {"epochs": ran, "curve": curve.means, "top1_per_epoch": tested.top1}

        before, _ = stage(f"pruned-{number}", "prune", cut)
        net, facts = stage(f"recovered-{number}", "recover", recover)
        epochs["recover"], best = epochs["recover"] + facts["epochs"], facts["top1_per_epoch"]
        curves["recover" if turn.last else f"recover-{number}"] = facts.get("curve")

    with watch("measure"):
        rows = measure(baseline, before, net, data, example, cfg.measure.batch_size, cfg.recipe.eval_batch_size)
    rows["baseline"]["source"] = found["source"]
    rows["pruned"]["top1_best"] = max(best, default=None)
    record = {
        "schema": SCHEMA, "key": store.key, "status": "done",
        "experiment": cfg.experiment, "claim": store.config["claim"],
        "method": method.name, "model": cfg.model.name, "dataset": cfg.dataset.name, "recipe": cfg.recipe.name,
        "seed": cfg.seed, "config": store.config, **rows, "widths": widths(baseline, net), "epochs": epochs,
        **({"group_norms": norms} if norms else {}), "curves": {name: means for name, means in curves.items() if means},
        "paper_epochs": store.config["recipe"]["paper_epochs"], "seconds": watch.seconds,
        "code": fingerprint(store.config),
        "env": environment(device(cfg), cfg.trainer.devices), "started": watch.started}
    if cfg.experiment:
        store.publish(record)
    store.finish(record, net)
    return record


def find_baseline(cfg: DictConfig, store: Store, data: Data, example: Tensor, logger: Any,
                  watch: Stopwatch) -> tuple[nn.Module, dict]:
    """The unpruned net: from `model.weights`, or trained once and found again by its key."""
    def build() -> nn.Module:
        with seeded(cfg.seed, "init"):
            net = models.build(OmegaConf.to_container(cfg.model, resolve=True))
        return net.to(example.device, memory_format=torch.channels_last)

    def train(unfinished: Path) -> tuple[nn.Module, dict]:
        net = build()
        watch.add("baseline", spent(unfinished))
        curve = TrainingCurve()
        epochs = fit(net, data, cfg, "baseline", "baseline", callbacks=[curve], logger=logger.stage("baseline"),
                     unfinished=unfinished)
        return net, {"epochs": epochs, "curve": curve.means, "source": "trained here"}

    if cfg.model.weights:
        return build(), {"epochs": 0, "source": store.config["model"]["weights"]}
    net, facts = store.baseline(train)
    return net.to(example.device), facts


def allocate(method: Method, probe: Probe, counts: Mapping[str, int] | None = None) -> Plan:
    """Scores -> plan: what the allocation says, or the `counts` lowest scores of some groups."""
    groups = [g for g in method.allocation.candidates(probe) if counts is None or g.name in counts]
    scores = method.criterion(groups, probe)
    if counts is None:
        return method.allocation(scores, probe)
    return {g.name: keep_best(scores[g.name], counts[g.name]) for g in groups}


def prune(method: Method, turn: Round, probe: Probe) -> nn.Module:
    """-> a really smaller net. Raises UserError if no filter would go."""
    plan = allocate(method, probe, turn.counts)
    if method.search is not None:
        plan = method.search(plan, probe)
    if not removed(plan):
        raise UserError(f"method {method.name!r} would remove no filter of this net: raise the rate or lower "
                        "the budget of method.allocation (method=baseline measures the unpruned net)")
    smaller = remove(probe.net, plan)
    return smaller if method.repair is None else method.repair(smaller, probe)


def teacher(baseline: nn.Module, penalties: dict) -> nn.Module | None:
    """The unpruned net, where a penalty wants to learn from it."""
    wanted = any(getattr(p, "needs_teacher", False) for p in penalties.values())
    return copy.deepcopy(baseline) if wanted else None
