"""A search as a set of trials to obtain. (The sweep of Hydra's plugin for Optuna runs n_trials more each time.)"""

import hashlib
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_params_from_overrides
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from reprune.runs.compose import Composer
from reprune.runs.store import NOT_IN_KEY, Store
from reprune.training.classifier import derive


class Search(OptunaSweeperImpl):
    """n_trials counts the trials that ended with a number, in every attempt. What was running when the last attempt
    ended, or failed in it, comes first, with the same parameters: its run goes on, or is found finished, by its key.

    sampler: made anew before every batch, from its seed and the number of the trial. A search that was cut off draws
    what it would have drawn: one seeded sampler for all of it would start again with its first draws.
    """

    def __init__(self, sampler: DictConfig, storage: str, study_name: str | None, n_trials: int, n_jobs: int,
                 params: DictConfig | None = None):
        super().__init__(sampler, "maximize", storage, study_name, n_trials, n_jobs, 1.0, None, None, params)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", module="optuna")

    def sweep(self, arguments: list[str]) -> None:
        space, fixed = create_params_from_overrides([*self._parse_sweeper_params_config(), *arguments])
        self._check(space)
        output_dir = Path(self.config.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        name = self.study_name or f"search-{_digest(arguments)}"
        try:
            with FileLock(output_dir / f"{name}.lock", timeout=0):
                self._go_on(name, space, fixed)
        except Timeout:
            sys.exit(f"error: search {name} is being run by another process: let it end, or set another "
                     "hydra.sweeper.study_name")

    def _check(self, space: Mapping[str, Any]) -> None:
        share = self.config.search.macs
        if not space:
            sys.exit("error: nothing to search: give a key an interval or a choice, such as "
                     "'method.allocation.rate=interval(0.3,0.8)'")
        if not self.config.dataset.val_size:
            sys.exit("error: a search needs held-out images to judge by: dataset.val_size is "
                     f"{self.config.dataset.val_size}, must be at least 1 (the test set is not for choosing)")
        if share is not None and not 0 < share <= 1:
            sys.exit(f"error: search.macs must be above 0 and at most 1, or null, got {share}")

    def _go_on(self, name: str, space: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
        storage = optuna.storages.get_storage(self.storage)
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        if any(t.distributions.items() - space.items() for t in study.trials):
            sys.exit(f"error: search {name} is over other keys or intervals: set another hydra.sweeper.study_name")
        done = [t for t in study.trials if t.state is TrialState.COMPLETE]
        known = [t.params for t in done]
        for trial in study.trials:
            if trial.state is TrialState.RUNNING:                 # by a process that is no more
                storage.set_trial_state(trial._trial_id, TrialState.WAITING)
            if trial.state in (TrialState.RUNNING, TrialState.WAITING):
                known.append(trial.params or trial.system_attrs.get("fixed_params"))
        for trial in study.trials:
            if trial.state is TrialState.FAIL and trial.params not in known:
                study.enqueue_trial(trial.params)
                known.append(trial.params)
        print(f"search {name}: {len(done)} of {self.n_trials} trials done, in {self.storage}")
        left = self.n_trials - len(done)
        while left > 0:
            left -= self._batch(study, min(self.n_jobs, left), space, fixed)
        self._report(study, fixed)

    def _batch(self, study: optuna.Study, size: int, space: Mapping[str, Any], fixed: Mapping[str, Any]) -> int:
        trials = []
        for _ in range(size):
            study.sampler = self._sampler(study)
            trials.append(study.ask())
            cell, = self._configure_trials(trials[-1:], space, fixed)
            trials[-1].set_user_attr("cell", list(cell))
        cells = [trial.user_attrs["cell"] for trial in trials]
        returns = self.launcher.launch(cells, initial_job_idx=self.job_idx)
        self.job_idx += size
        for trial, ended in zip(trials, returns, strict=True):
            value = _value(ended)
            if math.isnan(value):
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, value)
            told = " ".join(f"{name}={choice}" for name, choice in trial.params.items())
            print(f"trial {trial.number}: {'failed' if math.isnan(value) else value}  {told}")
        return size

    def _sampler(self, study: optuna.Study) -> optuna.samplers.BaseSampler:
        seed = self.sampler.get("seed")
        return instantiate(self.sampler, **({} if seed is None else
                                            {"seed": derive(seed, f"trial {len(study.trials)}") % 2**32}))

    def _report(self, study: optuna.Study, fixed: Mapping[str, Any]) -> None:
        done = [t for t in study.trials if t.state is TrialState.COMPLETE]
        if not done:
            print("search: no trial ended with a number")
            return
        best: FrozenTrial = max(done, key=lambda t: t.value)
        compose = Composer(self.hydra_context.config_loader, self.config.hydra.job.config_name,
                           self.config.hydra.overrides.hydra)
        key = Store(compose(best.user_attrs["cell"])).key
        print(f"best of {len(done)} trials: {best.value} (top-1 % on held-out images), trial {best.number}, run {key}")
        if best.value < 0:
            print(f"  no net kept its MACs within search.macs={self.config.search.macs}: this is minus the excess")
        for name, value in best.params.items():
            print(f"  {name}={value}")


def _value(ended: JobReturn) -> float:
    try:
        return float(ended.return_value)
    except Exception:                                             # the job itself has told
        return math.nan


def _digest(arguments: list[str]) -> str:
    """The same search, whatever its order, its places, and where it runs."""
    ignored = tuple(name for name in NOT_IN_KEY if name not in ("search", "control"))     # a control sets a method
    told = [a for a in arguments if not a.lstrip("+~").split("=")[0].replace("/", ".").startswith(ignored)]
    return hashlib.sha256("\n".join(sorted(told)).encode()).hexdigest()[:8]
