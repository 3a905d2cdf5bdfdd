"""From the training to the answers: the scripts work together, and a stopped training loses nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import runengine
from runengine import UserError
from runengine.testing import assert_resumes_exactly

from ml_project import predict
from ml_project.evaluate import evaluate, look, ngram_bits
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


def test_what_is_measured_is_what_the_model_says(run: runengine.Run, metrics: dict[str, float]) -> None:
    """Of two windows character by character, and of all of them in one mean."""
    cfg, task, data = runengine.load(run)
    model, nats = predict.load(str(run.folder)), 0.0
    tokens = data.tokens("test").numpy()[: 2 * cfg.data.context + 1]
    for place in range(1, len(tokens)):
        start = (place - 1) // cfg.data.context * cfg.data.context
        tokens_1T = np.full((1, cfg.data.context), -1)
        tokens_1T[0, : place - start] = tokens[start:place]
        nats -= math.log(model.next(tokens_1T)[0, tokens[place]])
    inputs_NT, targets_NT = data.split("test").tensors
    with torch.inference_mode():
        batches = zip(inputs_NT.split(64), targets_NT.split(64), strict=True)
        losses_NT = torch.cat([task.mean_loss(batch)[1] for batch in batches])
    assert nats / (len(tokens) - 1) == pytest.approx(float(losses_NT[:2].mean()), rel=1e-4)
    assert metrics["test/loss"] == pytest.approx(float(losses_NT.double().nanmean()), rel=1e-5)
    table = pd.read_csv(run.folder / "test_predictions.csv")
    assert metrics["test/bits"] == pytest.approx(table["bits"].mean(), rel=1e-2)
    assert metrics["test/bits"] == pytest.approx(metrics["test/loss"] / math.log(2))
    assert len(table) == cfg.data.context


def test_a_run_of_characters_is_as_probable_as_it_was_counted() -> None:
    # `a` is 2 of 4, with 5 more of which each of 4 is a quarter; after it came `b` twice, and 5 more as without it
    one, after_a = (2 + 5 / 4) / (4 + 5), (2 + 5 * (2 + 5 / 4) / (4 + 5)) / (2 + 5)
    assert ngram_bits("abab", "ab", num_tokens=4, order=1) == pytest.approx(-math.log2(one))
    assert ngram_bits("abab", "ab", num_tokens=4, order=2) == pytest.approx(-math.log2(after_a))


def test_a_text_goes_on_as_its_seed_says(run: runengine.Run) -> None:
    model = predict.load(str(run.folder))
    answers = ["".join(predict.generate(model, "The ", 20, seed=seed)) for seed in (0, 0, 1)]
    assert len(answers[0]) == 20
    assert answers[0] == answers[1] != answers[2]
    long = "The statement is " * 20
    likely = "".join(predict.generate(model, long, 3, temperature=0))
    assert "".join(predict.generate(model, long, 3, temperature=1e-3)) == likely


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["", "--length", "1"], "the text is empty. Give one character or more."),
        (["The", "--length", "0"], "--length must be >= 1, got 0."),
        (["The", "--temperature", "11"], "--temperature must be >= 0 and <= 10, got 11."),
        (["The", "--seed", "-1"], "--seed must be >= 0, got -1."),
    ],
)
def test_what_cannot_be_continued_is_refused(typed: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["predict", *typed])
    with pytest.raises(UserError) as refused:
        predict.main()
    assert str(refused.value) == sentence


def test_what_is_no_text_has_no_answer(run: runengine.Run, processed: Path) -> None:
    model = predict.load(str(run.folder))
    num_tokens = json.loads((processed / "split.json").read_text())["num_tokens"]
    tokens_5T = np.full((5, model.context), -1)
    tokens_5T[:4, 0] = 3, -1, -2, num_tokens
    tokens_5T[1, 1] = 3  # after a gap; the fifth has no token
    answers_5K = model.next(tokens_5T)
    assert answers_5K[0].sum() == pytest.approx(1)
    assert np.isnan(answers_5K[1:]).all()


def test_the_test_split_can_be_looked_at(run: runengine.Run) -> None:
    look(run)
    assert run.look.is_file()


def test_the_model_is_exported(run: runengine.Run) -> None:
    predict.export(run)  # compares the answers
    assert run.model.is_dir()


def test_a_training_that_is_stopped_resumes_exactly(short: list[str]) -> None:
    assert_resumes_exactly(train, short)
