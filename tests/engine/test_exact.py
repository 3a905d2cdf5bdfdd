"""What is recorded is what it says: means over examples, and the best epoch wherever the run lies."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import runengine
import torch
from ml_project.data import ImageData, as_float
from ml_project.evaluate import evaluate
from ml_project.task import ImageClassifier
from runengine import Run
from torch.nn import functional as F

Train = Callable[..., Run]


def over_all_examples(run: Run, split: str) -> tuple[float, float]:
    """Loss and share of right answers, by plain PyTorch."""
    _, task, data = runengine.load(run)
    assert isinstance(data, ImageData)
    examples = data.split(split)
    images, labels = examples.__getitems__(range(len(examples)))
    with torch.inference_mode():
        logits = task(as_float(images))
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(dim=1) == labels).double().mean())


@pytest.mark.parametrize("batch_size", [32, 100])  # neither divides the splits
def test_recorded_metrics_are_those_over_all_examples_at_once(run_training: Train, batch_size: int) -> None:
    run = run_training("trainer.max_epochs=2", f"data.batch_size={batch_size}")
    best = json.loads(run.metrics.read_text())
    assert over_all_examples(run, "val") == pytest.approx((best["val/loss"], best["val/accuracy"]), rel=1e-5)
    tested = evaluate(run)
    assert over_all_examples(run, "test") == pytest.approx((tested["test/loss"], tested["test/accuracy"]), rel=1e-5)


def test_a_run_that_was_moved_keeps_its_best_checkpoint(run_training: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_training("trainer.max_epochs=3", "run_dir=runs/x")
    best, epoch = run.best.read_bytes(), json.loads(run.metrics.read_text())["epoch"]
    run.folder.rename("moved")
    # from here on the validation finds a model that knows nothing
    monkeypatch.setattr(ImageClassifier, "forward", lambda task, images: task.model(images) * task.training)
    moved = run_training("run_dir=moved", "trainer.max_epochs=5")
    assert json.loads(moved.metrics.read_text())["epoch"] == epoch
    assert moved.best.read_bytes() == best
    assert len(moved.history.read_text().splitlines()) == 1 + 5
