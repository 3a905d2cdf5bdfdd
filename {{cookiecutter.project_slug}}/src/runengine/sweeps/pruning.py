"""What a trial of a search does during its training: it reports to the study, and stops when it is not promising."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ..compat import open_trial
from ..runs.run import Run
from ..settings.files import read_json
from .search import storage


class Report(Callback):
    """Reports to the study how the trial is doing, and stops it when the others were better at the same epoch.

    Writes `pruned` into the run's folder when it does.

    Args:
        run: has `trial.json`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.asked = read_json(run.trial)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.run.pruned.unlink(missing_ok=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metric, metrics = self.asked.get("metric"), trainer.callback_metrics
        if metric not in metrics:
            return  # another of several validations, or it is logged in training; training/history.py says if never
        prune = False
        if trainer.is_global_zero:  # the study has one opinion, and every rank must stop with it
            prune = self._report(float(metrics[metric]), trainer.current_epoch)
            prune = prune and trainer.current_epoch + 1 != trainer.max_epochs
            if prune:
                self.run.pruned.write_text(f"after epoch {trainer.current_epoch + 1}\n", encoding="utf-8")
        trainer.should_stop = trainer.should_stop or trainer.strategy.broadcast(prune)

    def _report(self, value: float, epoch: int) -> bool:
        """Whether the trial should stop."""
        import optuna

        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if self.asked["pruning_after_trials"] is not None:
            pruner = optuna.pruners.MedianPruner(
                n_startup_trials=self.asked["pruning_after_trials"], n_warmup_steps=self.asked["pruning_after_epochs"]
            )
        study = optuna.load_study(
            study_name=self.asked["study"], storage=storage(self.run.folder / self.asked["storage"]), pruner=pruner
        )
        trial, known = open_trial(study, self.asked["trial"])
        if epoch not in known.intermediate_values:  # a resumed run repeats an epoch that it has reported
            trial.report(value, epoch)
        return trial.should_prune()
