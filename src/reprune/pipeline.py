"""One run, top to bottom: cfg -> baseline -> sparse training -> rounds of prune and recover -> record."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from reprune import models
from reprune.data import Data
from reprune.errors import UserError
from reprune.pruning.allocation import keep_best, removed
from reprune.pruning.probe import Original, Probe
from reprune.pruning.rounds import Round
from reprune.pruning.sockets import Method
from reprune.runs.checks import trainable
from reprune.runs.compose import typed
from reprune.runs.loggers import open_logger
from reprune.runs.measure import Stopwatch, check_alive, coded, environment, group_norms, measure, threads
from reprune.runs.shown import finished, show
from reprune.runs.stages import Stage
from reprune.runs.store import Store
from reprune.schema import SCHEMA
from reprune.structure.groups import Plan
from reprune.training.callbacks import Penalties, TestCurve
from reprune.training.classifier import derive, device, fit, seeded
from reprune.training.speed import threads_of


def run(cfg: DictConfig) -> dict:
    """Does what is missing of the run `cfg` describes. -> its record"""
    store = Store(cfg)
    if (record := finished(cfg, store)) is None:
        trainable(cfg)
        with store.alone(), threads(threads_of(cfg, device(cfg))):     # another process may have made it meanwhile
            record = finished(cfg, store) or Run(cfg, store).attempt()
    return record


class Run:
    """The stages of one run, in order. Each is made once: an attempt that goes on after a break finds it. What a stage
    hands on is read back from its files, and so the same for who makes it and who finds it."""

    def __init__(self, cfg: DictConfig, store: Store):
        self.cfg, self.store, self.watch = cfg, store, Stopwatch()
        self.method: Method = instantiate(cfg.method)
        self.data: Data = instantiate(cfg.dataset)
        self.example = torch.zeros(1, self.data.channels, self.data.size, self.data.size, device=device(cfg))
        self.view = {"example": self.example, "data": self.data, "seed": derive(cfg.seed, "probe"),
                     "batch_size": cfg.recipe.eval_batch_size, "given": bool(cfg.model.weights)}
        self.method.during.view = self.view
        models.trust(cfg.model._target_)                          # who has typed the config has named it
        self.logger = open_logger(cfg, store)

    def attempt(self) -> dict:
        """-> the record, once the logger has it too"""
        try:
            record = self.stages()
        except BaseException:
            self.logger.close(failed=True)
            raise
        self.logger.close(record)
        show(record, self.store.folder)
        return record

    def stages(self) -> dict:
        """From the unpruned net to the record."""
        baseline, trained = self.baseline()
        net, sparse = self.sparse(baseline)
        before, pruned, recovered = self.rounds(baseline, net, sparse.get("carried", {}))
        with self.watch("measure"):
            pruned, size = coded(self.method, baseline, pruned, self.store.folder)
            measured = measure(baseline, net if self.method.trains_sparse else None, before, pruned, self.data,
                               self.example, self.cfg.measure.batch_size, self.cfg.recipe.eval_batch_size)
        measured["pruned"] |= size
        record = self.record(trained, sparse, recovered, measured)
        self.store.finish(record, pruned)
        return record

    def baseline(self) -> tuple[nn.Module, dict]:
        """The unpruned net: from `model.weights`, or trained by the first of the runs that share it."""
        with self.watch("baseline"):
            if self.cfg.model.weights:
                return self.fresh(), {"epochs": 0, "source": self.store.config["model"]["weights"]}
            with self.store.baseline() as stage:
                done = stage.found()
                if done is None:
                    net = self.fresh()
                    facts = self.train(net, "baseline", "baseline", stage)
                    self.watch.add("baseline", facts["earlier"])
                    done = stage.keep(net, {**facts, "source": "trained here"})
        net, facts = done
        return net.to(self.example.device), facts

    def fresh(self) -> nn.Module:
        """A net that nothing has trained yet, or one with the weights it is given."""
        with seeded(self.cfg.seed, "init"):
            net = models.build(OmegaConf.to_container(self.cfg.model, resolve=True))
        net = net.to(self.example.device, memory_format=torch.channels_last)
        models.check_task(net, self.example, self.data.classes)
        self.check(net)
        return net

    def check(self, net: nn.Module) -> None:
        """Raises UserError where the method cannot serve this net."""
        if self.method.prunes or self.method.trains_sparse:
            self.method.check(self.look(net))

    def sparse(self, baseline: nn.Module) -> tuple[nn.Module, dict]:
        """Trained on with the method's penalties, and what else it does meanwhile, if anything."""
        if not self.method.trains_sparse:
            return baseline, {"epochs": 0}
        self.check(baseline)                                      # which may have been found, and not made
        stage = self.store.stage("sparse")
        done = stage.found()
        if done is None:
            net = copy.deepcopy(baseline)
            facts = self.train(net, "sparse", "sparse", stage, baseline, penalties=self.method.penalties,
                               during=self.method.during)
            done = stage.keep(net, {**facts, "group_norms": group_norms(net)})
        net, facts = self.ended("sparse", *done)
        if self.method.prunes and facts["epochs"]:
            weights = [f"method.penalties.{name}.weight" for name in self.method.penalties]
            check_alive(baseline, net, self.data, self.view,
                        f"lower {' or '.join(weights) or 'the rate of method.allocation'}, or train longer")
        return net, facts

    def rounds(self, baseline: nn.Module, net: nn.Module, carried: dict) -> tuple[nn.Module, nn.Module, dict]:
        """-> the net before and after it recovers for the last time, and what is known of every recovery"""
        if not self.method.prunes:
            return net, net, {}
        before, recovered, first = net, {}, self.look(net, carried={**carried})       # `turns` may not be asked again
        for number, turn in enumerate(self.turns(first)):
            before, carried = self.cut(net, number, turn, first.original, carried)
            name = "recover" if turn.last else f"recover-{number}"
            net, recovered[name] = self.recover(before, number, turn, name, baseline)
        return before, net, recovered

    def turns(self, first: Probe) -> list[Round]:
        """What goes when: decided once, on the net before the first round."""
        with self.watch("prune"):
            turns = self.store.noted("rounds")
            if turns is None:
                plan = partial(allocate, self.method, first)      # can take long: only layer by layer asks for it
                turns = self.store.note("rounds", [asdict(turn) for turn in self.method.rounds(plan)])
        return [Round(**turn) for turn in turns]

    def cut(self, net: nn.Module, number: int, turn: Round, original: Original,
            carried: dict) -> tuple[nn.Module, dict]:
        """-> a smaller net, and what the criterion hands on"""
        stage = self.store.stage(f"pruned-{number}")
        done = stage.found()
        if done is None:
            started = time.perf_counter()
            probe = self.look(net, share=turn.share, original=original, carried=carried)
            smaller = prune(self.method, turn, probe)
            done = stage.keep(smaller, {"seconds": time.perf_counter() - started, "carried": probe.carried})
        smaller, facts = self.ended("prune", *done)
        return smaller, facts["carried"]

    def recover(self, before: nn.Module, number: int, turn: Round, name: str,
                baseline: nn.Module) -> tuple[nn.Module, dict]:
        """Fine-tuned, distilled or trained from scratch, as recipe and method say."""
        stage = self.store.stage(f"recovered-{number}")
        done = stage.found()
        if done is None:
            net, tested = copy.deepcopy(before), TestCurve(self.data, self.cfg.recipe.eval_batch_size)
            part = "recover" if turn.last or "between" not in self.cfg.recipe else "between"
            penalties = self.method.recover_penalties if turn.last else self.method.between_penalties
            facts = self.train(net, name, part, stage, baseline, penalties=penalties, epochs=turn.epochs,
                               batches=turn.batches,
                               callbacks=[tested] * (self.cfg.recipe.test_every_epoch and turn.last))
            done = stage.keep(net, {**facts, "top1_per_epoch": tested.top1})
        return self.ended("recover", *done)

    def train(self, net: nn.Module, name: str, part: str, stage: Stage, baseline: nn.Module | None = None,
              callbacks: Sequence[pl.Callback] = (), **more: Any) -> dict:
        """Trains `net` by a part of the recipe; penalties may learn from the baseline. more: of `fit`. -> facts"""
        return fit(net, self.data, self.cfg, name, part, teacher=baseline, unfinished=stage.unfinished,
                   callbacks=[*self.logger.stage(name), Penalties(), *callbacks], **more)

    def ended(self, part: str, net: nn.Module, facts: dict) -> tuple[nn.Module, dict]:
        """A stage that has ended, in this attempt or in an earlier one."""
        self.watch.add(part, facts["seconds"])
        return net.to(self.example.device), facts

    def look(self, net: nn.Module, **round: Any) -> Probe:
        """What criteria, allocations and searches may see of a net."""
        return Probe(net, **self.view, **round)

    def record(self, trained: dict, sparse: dict, recovered: dict[str, dict], measured: dict) -> dict:
        """All that a table needs, to be traced back to here."""
        cfg, store, facts = self.cfg, self.store, {"baseline": trained, "sparse": sparse, **recovered}
        best = recovered.get("recover", {}).get("top1_per_epoch", [])
        measured["baseline"]["source"] = trained["source"]
        measured["pruned"]["top1_best"] = max(best, default=None)
        norms = {"group_norms": sparse["group_norms"]} if sparse.get("group_norms") else {}
        return {
            "schema": SCHEMA, "key": store.key, "status": "done", "experiment": cfg.experiment, "overrides": typed(),
            "control": store.control, "claim": store.claim,
            "method": self.method.name, "model": cfg.model.name, "dataset": cfg.dataset.name,
            "recipe": cfg.recipe.name, "seed": cfg.seed, "config": store.config, **measured,
            "epochs": {"baseline": trained["epochs"], "sparse": sparse["epochs"],
                       "recover": sum(f["epochs"] for f in recovered.values())}, **norms,
            "curves": {name: f["curve"] for name, f in facts.items() if f.get("curve")},
            "paper_epochs": store.config["recipe"]["paper_epochs"], "seconds": self.watch.seconds,
            "code": store.code, "env": environment(device(cfg), cfg.trainer.devices),
            "started": self.watch.started}


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
    smaller = method.surgery(plan, probe)
    for repair in method.repair.values():
        smaller = repair(smaller, probe)
    return smaller
