"""The only module that touches what other libraries keep private.

| what | seen in | what breaks without it |
|---|---|---|
| `trainer.fit_loop.epoch_progress`, `.epoch_loop.batch_progress` | Lightning 2.6.6 | resuming in the middle of an epoch |
| `trainer.fit_loop.epoch_loop._results` | Lightning 2.6.6 | means of `self.log` over an epoch that was interrupted |
| `trainer._logger_connector.metrics` | Lightning 2.6.6 | epochs without validation get the values of an earlier one |
| `hydra._internal.core_plugins.basic_sweeper` | Hydra 1.3.8 | the combinations of a sweep |
| `trial._trial_id` | Optuna 5.0 | reports of a trial that is resumed |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna
    import pytorch_lightning as pl


def progress(trainer: pl.Trainer) -> tuple[int, int]:
    """Epochs that are finished, and batches that are done of the next one."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return epochs.processed, batches.processed if epochs.started > epochs.processed else 0


def stage_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """What has been logged for callbacks in the present stage, training or validation, and in no earlier one."""
    metrics: Any = trainer._logger_connector.metrics["callback"]
    return {name: float(value) for name, value in sorted(metrics.items())}


def logged_sums(trainer: pl.Trainer) -> dict[str, dict[str, Any]]:
    """What `self.log(..., on_epoch=True)` has summed up so far in this epoch, on this process; plain tensors."""
    results: Any = trainer.fit_loop.epoch_loop._results
    return {
        key: {name: value.detach().cpu() for name, value in result.metric_state.items()}
        for key, result in results.items()
        if result.is_tensor and result.meta.on_epoch
    }


def add_logged_sums(trainer: pl.Trainer, sums: dict[str, dict[str, Any]]) -> None:
    """Add sums of an earlier process to those of this one, and drop from `sums` what has been added.

    Lightning makes a sum when its name is logged first: to be called after a batch. Then the additions are in the order
    of a training that was never interrupted, so the mean has the same bits.
    """
    results: Any = trainer.fit_loop.epoch_loop._results
    for key in [key for key in sums if key in results]:
        result, saved = results[key], sums.pop(key)
        value = saved["value"].to(result.value.device)
        if result.meta.is_max_reduction or result.meta.is_min_reduction:
            result.value = result.meta.reduce_fx(value, result.value)
        else:
            result.value = value + result.value
        if result.meta.is_mean_reduction:
            result.cumulated_batch_size = saved["cumulated_batch_size"].to(value.device) + result.cumulated_batch_size


def grid(typed: Sequence[str]) -> list[list[str]]:
    """Every combination of the lists in what was typed, as Hydra's own sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return [list(job) for job in BasicSweeper.split_arguments(parser.parse_overrides(list(typed)), None)[0]]


def open_trial(study: optuna.Study, number: int) -> tuple[optuna.trial.Trial, optuna.trial.FrozenTrial]:
    """A trial of the study to report to, and what is known of it."""
    import optuna

    known = study.get_trials(deepcopy=False)[number]
    return optuna.trial.Trial(study, known._trial_id), known
