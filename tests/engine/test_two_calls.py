"""A run may call `fit` twice, to freeze and then to fine-tune: stopped anywhere, it resumes to the same bits."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable

import pytest
import pytorch_lightning as pl
import runengine
import torch
from conftest import STEPS, same, stopped
from ml_project.data import Batch
from ml_project.task import ImageClassifier
from ml_project.train import build_data, build_task, train
from omegaconf import DictConfig
from runengine import Run

Train = Callable[..., Run]

EPOCHS = ("trainer.max_epochs=2", "model=cnn", "run_dir=runs/x")


def freeze_then_tune(cfg: DictConfig, run: runengine.TrainingRun) -> None:
    data, task = build_data(cfg), build_task(cfg)
    assert isinstance(task.model.features, torch.nn.Module)
    run.start_from(task, cfg.init_from)
    task.model.features.requires_grad_(False)
    first = pl.Trainer(**run.trainer_options(task, more=True))
    with run:
        first.fit(task, data, ckpt_path=run.resume_from, weights_only=True)
        task.model.features.requires_grad_(True)
        second = pl.Trainer(**run.trainer_options(task))
        second.fit(task, data, ckpt_path=run.resume_from, weights_only=True)


@pytest.fixture(autouse=True)
def two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "function", freeze_then_tune)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At this step, counted over both calls."""
    before, count = ImageClassifier.training_step, itertools.count()

    def training_step(task: ImageClassifier, batch: Batch) -> torch.Tensor:
        if next(count) == step:
            signal.raise_signal(signal.SIGTERM)
        return before(task, batch)

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)


@pytest.mark.parametrize("step", [1, 2 * STEPS - 1, 2 * STEPS, 3 * STEPS + 1])
def test_a_run_of_two_calls_resumes_exactly(run_training: Train, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    straight = run_training(*EPOCHS[:2], "run_dir=runs/straight")
    rows = straight.history.read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [[str(n), str((n + 1) * STEPS)] for n in range(4)]
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        assert stopped(run_training, *EPOCHS[:2]) == 75
    assert same(run_training(EPOCHS[2]), straight)
    assert json.loads(straight.metrics.read_text())["epoch"] >= 0


def test_a_mistake_between_the_calls_fails_the_run(run_training: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(cfg: DictConfig, run: runengine.TrainingRun) -> None:
        data, task = build_data(cfg), build_task(cfg)
        trainer = pl.Trainer(**run.trainer_options(task, more=True))
        with run:
            trainer.fit(task, data, ckpt_path=run.resume_from, weights_only=True)
            raise RuntimeError("no such layer")

    monkeypatch.setattr(train, "function", mistaken)
    with pytest.raises(RuntimeError, match="no such layer"):
        run_training(*EPOCHS)
    assert (Run(runengine.find("runs/x").folder).error.read_text()) == "RuntimeError: no such layer\n"
    assert not Run(runengine.find("runs/x").folder).finished()
