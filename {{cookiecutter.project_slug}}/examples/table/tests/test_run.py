"""From the training to the answers: the scripts work together, and a stopped training loses nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import runengine
from runengine.testing import assert_resumes_exactly

from ml_project import predict
from ml_project.evaluate import evaluate, look
from ml_project.prepare import files_of
from ml_project.train import train


@pytest.fixture(scope="module")
def run(short: list[str], tmp_path_factory: pytest.TempPathFactory) -> runengine.Run:
    folder = tmp_path_factory.mktemp("runs") / "short"
    overrides = [*short, "trainer.max_epochs=1", f"run_dir={folder.as_posix()}"]
    return train.start(runengine.compose("train", overrides), overrides)


@pytest.fixture(scope="module")
def metrics(run: runengine.Run) -> dict[str, float]:
    return evaluate(run)


def test_one_epoch_trains_and_evaluates(run: runengine.Run, metrics: dict[str, float]) -> None:
    assert run.finished()
    assert run.best.is_file()
    assert metrics
    assert all(name.startswith("test/") and math.isfinite(value) for name, value in metrics.items())
    assert run.test_metrics.is_file()


def test_what_evaluate_measures_is_what_it_tables(run: runengine.Run, metrics: dict[str, float]) -> None:
    table = pd.read_csv(run.folder / "test_predictions.csv")
    errors_N = table["predicted"] - table["target"]
    assert metrics["test/mae"] == pytest.approx(errors_N.abs().mean(), rel=1e-4)
    assert metrics["test/rmse"] == pytest.approx(np.sqrt((errors_N**2).mean()), rel=1e-4)
    assert metrics["test/r2"] == pytest.approx(1 - (errors_N**2).mean() / table["target"].var(ddof=0), abs=1e-3)


def test_predict_agrees_with_evaluate(
    run: runengine.Run, metrics: dict[str, float], processed: Path, tmp_path: Path
) -> None:
    """From the table as a person writes it."""
    model = predict.load(str(run.folder))
    rows_NC = np.load(files_of(processed, "test")[0])
    texts = {
        name: [model.data["categories"][name][int(value)] for value in values]
        if name in model.data["categories"]
        else values
        for name, values in zip(model.data["columns"], rows_NC.T, strict=True)
    }
    pd.DataFrame(texts).to_csv(tmp_path / "new.csv", index=False)
    answers = predict.predict(model, [tmp_path / "new.csv"])
    evaluated = pd.read_csv(run.folder / "test_predictions.csv")
    predicted = answers[f"predicted_{model.data['target']}"].tolist()
    assert predicted == pytest.approx(evaluated["predicted"].tolist(), rel=1e-4)


def test_the_test_split_can_be_looked_at(run: runengine.Run) -> None:
    look(run)
    assert run.look.is_file()


def test_the_model_is_exported(run: runengine.Run) -> None:
    predict.export(run)  # compares the answers
    assert run.model.is_dir()


def test_a_training_that_is_stopped_resumes_exactly(short: list[str]) -> None:
    assert_resumes_exactly(train, short)
