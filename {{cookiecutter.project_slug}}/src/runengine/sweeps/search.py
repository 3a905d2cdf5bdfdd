"""A search: Optuna chooses the settings of each run (a trial) from how the earlier ones went.

    python -m my_project.train search=default search.trials=50 search.space.optimizer.lr.high=0.01

The study is a file in the sweep's folder, `optuna.log`, that works on network file systems too; every job reads and
writes it. A trial that was stopped or has failed stays RUNNING there and is run again when the sweep is resumed. With
`seeds=3` a trial is three runs, and its value is their mean.
"""

from __future__ import annotations

import difflib
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..runs.run import Run
from ..settings import project
from ..settings.check import check
from ..settings.config import as_plain, compose, flatten
from ..settings.errors import UserError
from ..settings.files import drop_half_a_line
from .results import Job, metrics_in

if TYPE_CHECKING:
    import optuna

STUDY = "search"
GIVE_UP_AFTER = 3  # failed trials with none that went well: the search itself is wrong, not its settings


class Search:
    """Asks the study for trials and reports their results to it.

    Args:
        sweep: the study is in its folder.
        settings: `search` of the configuration.
        typed: what all trials have in common.
        seeds: of the runs of each trial; without them a trial is one run, and may be stopped early.
    """

    def __init__(
        self, sweep: Run, settings: DictConfig, typed: Sequence[str], seeds: Sequence[int] | None = None
    ) -> None:
        import optuna

        self.sweep, self.settings, self.typed, self.seeds = sweep, settings, list(typed), seeds
        cfg = compose(project.current().script, typed)
        self.monitor = cfg.monitor
        self.space = _distributions(settings, cfg)
        drop_half_a_line(sweep.study)  # or Optuna would never read the file again
        self.study = optuna.create_study(
            storage=storage(sweep.study),
            study_name=STUDY,
            direction="minimize" if cfg.monitor.mode == "min" else "maximize",
            load_if_exists=True,
        )
        self.trials = [self._runs(trial) for trial in self.study.get_trials(deepcopy=False)]
        self.jobs = [job for trial in self.trials for job in trial]

    def batches(self) -> Iterator[list[Job]]:
        """The trials that were interrupted, then new ones; each batch is to be run before the next is asked for."""
        numbers = range(len(self.trials))
        waiting = [number for number in numbers if not self._tell(number)]
        while waiting or len(self.trials) < self.settings.trials:
            while len(waiting) < self.settings.parallel and len(self.trials) < self.settings.trials:
                waiting.append(self._ask())
            batch, waiting = waiting[: self.settings.parallel], waiting[self.settings.parallel :]
            for number in batch:
                self._prepare(number)
            yield [job for number in batch for job in self.trials[number] if job.state != "finished"]
            for number in batch:
                self._tell(number)
            states = [state_of(trial) for trial in self.trials]
            if states.count("failed") >= GIVE_UP_AFTER and not {"finished", "pruned"} & set(states):
                return

    def _ask(self) -> int:
        # a generator for each trial: a search that is resumed draws what it would have drawn
        self.study.sampler = _samplers()[self.settings.sampler](seed=self.settings.seed + len(self.trials))
        trial = self.study.ask(self.space)
        self.trials.append(self._runs(trial))
        self.jobs += self.trials[-1]
        return trial.number

    def _runs(self, trial: optuna.trial.Trial | optuna.trial.FrozenTrial) -> list[Job]:
        """The runs of a trial; those of the next one are numbered from there on."""
        chosen = [f"{key}={_as_override(value)}" for key, value in trial.params.items()]
        seeds = [(f"seed={seed}",) for seed in self.seeds] if self.seeds else [()]
        return [
            Job(self.sweep.folder / f"{number:03d}", overrides=(*self.typed, *chosen, *seed))
            for number, seed in enumerate(seeds, start=trial.number * len(seeds))
        ]

    def _prepare(self, number: int) -> None:
        """What a run needs to report to the study; paths are relative to its folder, as the sweep may be moved."""
        if self.seeds:
            return  # a trial is as good as the mean of its runs, which is known at their end: none is stopped early
        (job,) = self.trials[number]
        job.folder.mkdir(exist_ok=True)
        record = {
            "storage": f"../{Run.study.name}",
            "study": STUDY,
            "trial": number,
            "metric": self.monitor.metric,
            "pruning_after_trials": self.settings.pruning_after_trials if self.settings.pruning else None,
            "pruning_after_epochs": self.settings.pruning_after_epochs,
        }
        job.trial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _tell(self, number: int) -> bool:
        """Whether the study knows how the trial ended; if not, it is to be run (again)."""
        from optuna.trial import TrialState

        if self.study.get_trials(deepcopy=False)[number].state.is_finished():
            return True
        state = state_of(self.trials[number])
        if state == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
        elif state == "finished":
            runs = [metrics_in(job.metrics) for job in self.trials[number]]
            value = statistics.fmean(float(metrics.get(self.monitor.metric, math.nan)) for metrics in runs)
            if math.isfinite(value):
                self.study.tell(number, value)
            else:  # it diverged: another try would, too
                self.study.tell(number, state=TrialState.FAIL)
        return state in ("pruned", "finished")


def state_of(trial: Sequence[Job]) -> str:
    """Of a trial: that of its runs, and the worst where they differ."""
    states = {job.state for job in trial}
    return next(state for state in ("failed", "unfinished", "pruned", "finished") if state in states)


def check_space(settings: DictConfig, typed: Sequence[str], seeds: Sequence[int] | None = None) -> None:
    """Refuse a search that cannot run, before anything starts.

    Args:
        settings: `search` of the configuration.
        typed: what all trials have in common.
        seeds: of the runs of each trial, if it is several.
    """
    script = project.current().script
    cfg = compose(script, typed)
    if settings.sampler not in _samplers():
        raise UserError(f"search.sampler must be one of {', '.join(_samplers())}, got {settings.sampler}.")
    if cfg.monitor.metric is None:
        raise UserError(
            "a search needs what it shall improve, but monitor.metric is null. Try monitor.metric=val/loss."
        )
    space = _distributions(settings, cfg)
    if seeds and "seed" in space:
        raise UserError("search.space.seed and seeds=... exclude each other. Leave one of them out.")
    fixed = {override.split("=", 1)[0] for override in typed} & space.keys()
    if fixed:
        key = min(fixed)
        raise UserError(f"{key} is chosen by the search. Leave it out, or write search.space.{key}=null.")
    for end in (0, -1):
        job = [*typed, *(f"{key}={_as_override(_ends(distribution)[end])}" for key, distribution in space.items())]
        check(compose(script, job), script, job)


def _distributions(settings: DictConfig, cfg: DictConfig) -> dict[str, optuna.distributions.BaseDistribution]:
    """The space as Optuna's own distributions; of integers where the setting is one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    known = dict(flatten(cfg))
    space: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, range_ in _leaves(as_plain(settings.space)):
        if key not in known and not project.choices(key):
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {nearest[0]}?" if nearest else f"Leave it alone with search.space.{key}=null."
            raise UserError(f"search.space names {key}, which is not a setting here. {hint}")
        integer = isinstance(known.get(key), int) and not isinstance(known.get(key), bool)
        try:
            if "choices" in range_:
                space[key] = CategoricalDistribution(**range_)
            else:
                space[key] = (IntDistribution if integer else FloatDistribution)(**range_)
        except (TypeError, ValueError) as error:
            raise UserError(f"search.space.{key} must have low and high, or choices: {error}") from error
    if not space:
        raise UserError("search.space is empty: there is nothing to search. Name a setting, as conf/search/ does.")
    return space


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """{"optimizer": {"lr": {"low": ..., "high": ...}}} -> "optimizer.lr", {"low": ..., "high": ...}."""
    for key, value in node.items():
        if value is None:
            continue
        if not isinstance(value, dict):
            raise UserError(f"search.space.{prefix}{key} must have low and high, or choices, got {value}.")
        if {"low", "high", "choices"} & value.keys():
            yield f"{prefix}{key}", value
        else:
            yield from _leaves(value, f"{prefix}{key}.")


def _ends(distribution: Any) -> tuple[Any, ...]:
    return getattr(distribution, "choices", None) or (distribution.low, distribution.high)


def _samplers() -> dict[str, Any]:
    import optuna

    return {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}


def storage(file: Path) -> optuna.storages.BaseStorage:
    """Of the study; each process that reports opens its own."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(file)))


def _as_override(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(value)
