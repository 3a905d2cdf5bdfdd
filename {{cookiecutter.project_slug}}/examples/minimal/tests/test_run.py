"""From the training to the answers: the scripts work together, and a stopped training loses nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import runengine
from runengine.testing import assert_resumes_exactly

from ml_project.evaluate import evaluate, look
from ml_project.predict import export, predict
from ml_project.train import train


def test_one_epoch_trains_evaluates_and_predicts(short: list[str], processed: Path, tmp_path: Path) -> None:
    overrides = [*short, "trainer.max_epochs=1", f"run_dir={(tmp_path / 'short').as_posix()}"]
    run = train.start(runengine.compose("train", overrides), overrides)
    rows = np.load(processed / "test.npy")
    answers_N = torch.from_numpy(predict(str(run.folder), rows[:, :-1]))
    loss = runengine.load(run).task.loss(answers_N, torch.from_numpy(rows[:, -1]))
    assert evaluate(run)["test/loss"] == pytest.approx(float(loss), rel=1e-4)
    export(run)  # compares the answers
    assert run.model.is_dir()
    look(run)
    assert run.look.is_file()


def test_a_training_that_is_stopped_resumes_exactly(short: list[str]) -> None:
    assert_resumes_exactly(train, short)
