"""What comes after the training fails no run: it is said, the run is finished, and can be completed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_project.evaluate import evaluate
from ml_project.model import CNN
from mlflow import MlflowClient
from runengine import Run, UserError, save_model, save_test_metrics
from runengine.tracking.registry import promote, serve
from torch import Tensor, nn

Train = Callable[..., Run]


def status(run: Run) -> str:
    """In MLflow."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    found: str = client.get_run(run.mlflow_run_id.read_text().strip()).info.status
    return found


def test_a_mistake_in_the_owners_figure_leaves_the_run_finished(
    run_training: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake(*_: object) -> None:
        raise ValueError("no such curve\nat all")

    with monkeypatch.context() as patch:
        patch.setattr("ml_project.plots.learning_curve", mistake)
        run = run_training("trainer.max_epochs=1", "tracking=mlflow")
    said = run.log.read_text()
    assert (
        "the training is finished, but an error came after it: ValueError: no such curve. "
        f"Make what is missing with: python -m ml_project.evaluate {run.folder}"
    ) in said
    assert 'raise ValueError("no such curve' in said  # with the place
    assert run.finished()
    assert status(run) == "FINISHED"
    assert not run.error.exists()

    with pytest.raises(UserError, match=r" has no model to serve: none was exported. To export it again: python -m "):
        promote(run)
    assert "test/loss" in evaluate(run)
    assert promote(run) == 1


def test_a_mistake_in_the_training_fails_the_run(run_training: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(*_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("ml_project.task.ImageClassifier.on_validation_epoch_end", mistake)
    with pytest.raises(RuntimeError, match="in the middle"):
        run_training("run_dir=runs/x", "+trainer.num_sanity_val_steps=0", "trainer.max_epochs=1", "tracking=mlflow")
    run = Run(Path("runs/x"))
    assert not run.finished()
    assert status(run) == "FAILED"
    assert run.error.read_text() == "RuntimeError: in the middle\n"


def test_a_model_whose_exported_program_answers_otherwise_is_not_saved(
    run_training: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: CNN, images_BCHW: Tensor) -> Tensor:
        features = nn.functional.dropout(self.features(images_BCHW), 0.5)  # also in evaluation, which is a mistake
        logits_BK: Tensor = self.classify(features)
        return logits_BK

    with monkeypatch.context() as patch:
        patch.setattr(CNN, "forward", forward)
        run = run_training("trainer.max_epochs=1", "tracking=mlflow", "register=true", "model=cnn")
        why = run.model_refused.read_text().strip()
        assert why.startswith("the exported model answers otherwise than the model, by up to 0.")
        assert f"the model was not exported: {why}" in run.log.read_text()
        assert not run.model.exists()
        assert run.finished()
        assert status(run) == "FINISHED"
        for refuses in (promote, lambda run: serve(1, "127.0.0.1", "digits", run)):
            with pytest.raises(UserError) as error:
                refuses(run)
            assert str(error.value) == (
                f"{run.folder} has no model to serve: {why} "
                f"To export it again: python -m ml_project.evaluate {run.folder}"
            )
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert not client.search_registered_models()
    assert "model_refused.txt" in {file.path for file in client.list_artifacts(run.mlflow_run_id.read_text().strip())}
    evaluate(run)  # the mistake is corrected
    assert not run.model_refused.exists()
    assert promote(run) == 1


class Tokens(nn.Module):
    """Whole numbers in, one number each out: neither an image nor a probability."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 3)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        numbers_B: Tensor = self.embedding(tokens_BL).sum(dim=(1, 2)) * 100
        return numbers_B


def test_what_is_exported_takes_and_gives_what_the_batch_shows(tmp_path: Path) -> None:
    import mlflow

    torch.manual_seed(0)
    model, tokens_BL = Tokens(), torch.randint(10, (5, 4))
    assert save_model(Run(tmp_path), model, tokens_BL, {"words": ["a"]})
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    (given,), (got,) = loaded.metadata.signature.inputs.inputs, loaded.metadata.signature.outputs.inputs
    assert (given.type, given.shape) == (np.dtype("int64"), (-1, 4))
    assert (got.type, got.shape) == (np.dtype("float32"), (-1,))
    for size in (1, 5):
        answers = loaded.predict(tokens_BL[:size].numpy())
        assert answers == pytest.approx(model(tokens_BL[:size]).detach().numpy())


class Mean(nn.Module):
    """One answer for all: nothing that could be served."""

    def forward(self, numbers_BF: Tensor) -> Tensor:
        return numbers_BF.mean()


def test_a_model_without_a_row_for_each_example_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not save_model(run, Mean(), torch.ones(4, 2), {})
    sentence = "a served model must give one tensor with a row for each of 4 inputs, got ()."
    assert run.model_refused.read_text() == f"{sentence}\n"
    assert f"the model was not exported: {sentence}" in caplog.text
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith("model")) == ["model_refused.txt"]
    assert save_model(run, nn.Linear(2, 3), torch.ones(4, 2), {})
    assert not run.model_refused.exists()


@pytest.mark.parametrize("started", [{"LOCAL_RANK": "1"}, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}])
def test_only_the_first_of_several_processes_writes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: dict[str, str]
) -> None:
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    run = Run(tmp_path / "run")
    (run.folder / "model.new").mkdir(parents=True)  # what the first is writing
    assert not save_model(run, nn.Linear(2, 3), torch.ones(4, 2), {})
    save_test_metrics(run, {"test/loss": 1.0})
    assert [file.name for file in run.folder.iterdir()] == ["model.new"]


def test_a_cut_out_example_makes_a_model_that_takes_any_batch(tmp_path: Path) -> None:
    import mlflow

    run, model = Run(tmp_path), nn.Linear(3, 2)
    assert save_model(run, model, torch.randn(8, 5)[:, 1:4], {})
    rows = torch.randn(2, 3)
    served = mlflow.pyfunc.load_model(str(run.model)).predict(rows.numpy())
    torch.testing.assert_close(torch.from_numpy(served), model(rows).detach())
