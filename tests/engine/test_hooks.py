"""Hooks that nobody implements are hidden while `fit` runs; what is logged in an epoch's last hooks is in its row."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from ml_project.task import ImageClassifier
from pytorch_lightning.callbacks import Callback, LambdaCallback
from runengine import Run
from runengine.settings.errors import UserError
from runengine.training.hooks import EACH_STEP, EACH_VALIDATION, NoEmptyHooks
from torch import nn
from torch.utils.data import DataLoader


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.heard: list[str] = []

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch).square().mean()
        return loss

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("val/loss", self.layer(batch).square().mean())

    def on_after_backward(self) -> None:
        self.heard.append("the task's on_after_backward")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Own(Callback):
    def __init__(self, heard: list[str]) -> None:
        self.heard = heard

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.heard.append("a callback's on_before_optimizer_step")

    def on_validation_batch_end(self, *_: Any) -> None:
        self.heard.append("a callback's on_validation_batch_end")


class Late(Callback):
    """Gives the task a hook when training has begun."""

    def __init__(self, heard: list[str]) -> None:
        self.heard = heard

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.on_before_zero_grad = lambda *_: self.heard.append("set later")  # type: ignore[method-assign]


pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, which the engine silences


def fit(task: Line, folder: Path, *callbacks: Callback) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[NoEmptyHooks(), *callbacks], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder,
    )  # fmt: skip
    loader: DataLoader[Any] = DataLoader(list(torch.ones(6, 2)), batch_size=3)  # type: ignore[arg-type]
    trainer.fit(task, loader, loader)
    return trainer


def test_every_hook_that_somebody_implements_is_called(tmp_path: Path) -> None:
    task = Line()
    by_lambda = LambdaCallback(on_train_batch_end=lambda *_: task.heard.append("a lambda's on_train_batch_end"))
    fit(task, tmp_path, Own(task.heard), by_lambda, Late(task.heard))
    for name in (
        "the task's on_after_backward", "a callback's on_before_optimizer_step", "set later",
        "a callback's on_validation_batch_end", "a lambda's on_train_batch_end",
    ):  # fmt: skip
        assert task.heard.count(name) == 4, name  # two batches, two epochs


def test_hooks_that_nobody_implements_are_hidden_while_it_trains_and_no_longer(tmp_path: Path) -> None:
    class Looks(Callback):
        hidden = 0

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            owners = [*trainer.callbacks, pl_module]  # type: ignore[attr-defined]
            self.hidden = sum(getattr(each, name) is None for each in owners for name in EACH_STEP + EACH_VALIDATION)

    task, own, looks = Line(), Own([]), Looks()
    fit(task, tmp_path, own, looks)
    # two callbacks that implement none of the eight, one that implements two, and the task, of its six
    assert looks.hidden == 8 + 8 + 6 + 5
    for each in (task, own, looks):
        assert all(callable(getattr(each, name)) for name in EACH_STEP + EACH_VALIDATION)
        assert not {*EACH_STEP, *EACH_VALIDATION} & each.__dict__.keys()


def test_an_error_in_training_leaves_no_hook_hidden(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            raise RuntimeError("no")

    task, fails = Line(), Fails()
    with pytest.raises(RuntimeError, match="no"):
        fit(task, tmp_path, fails)
    assert all(callable(getattr(each, name)) for each in (task, fails) for name in EACH_STEP + EACH_VALIDATION)


class LogsLate(Callback):
    """What it sees of an epoch it logs when the epoch is over, as a callback of Lightning's documentation does."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("late/step", float(trainer.global_step))


def test_what_a_callback_and_the_task_log_at_the_end_of_an_epoch_is_in_its_row(
    run_training: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_late(self: ImageClassifier) -> None:
        self.log("late/distance", abs(self.trainer.current_epoch - 1.0))

    monkeypatch.setattr(ImageClassifier, "on_train_epoch_end", log_late)
    with Path("pyproject.toml").open("a", encoding="utf-8") as file:
        file.write('targets = ["test_hooks.LogsLate"]\n')
    run = run_training(
        "trainer.max_epochs=4", "patience=3", "monitor.metric=late/distance", "monitor.mode=min",
        "+callbacks.late._target_=test_hooks.LogsLate",
    )  # fmt: skip
    with run.history.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["late/step"]) for row in rows] == [float(row["step"]) for row in rows]
    assert [float(row["late/distance"]) for row in rows] == [1, 0, 1, 2]
    assert torch.load(run.best, weights_only=True)["epoch"] == 1
    assert "late/distance" in run.metrics.read_text(encoding="utf-8")


def test_with_patience_a_metric_that_nobody_logs_is_refused_in_our_words(run_training: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"monitor\.metric is val/other, but the task has logged .*Log it"):
        run_training("patience=3", "monitor.metric=val/other")
