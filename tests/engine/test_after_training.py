"""What comes after the training fails no run: it is said, the run is finished, and can be completed."""

from __future__ import annotations

import json
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
from runengine.tracking.export import have_model
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
    assert "the training is finished and can be used, but an error came after it: ValueError: no such curve" in said
    assert 'raise ValueError("no such curve' in said  # with the place
    assert run.finished()
    assert status(run) == "FINISHED"
    assert not run.error.exists()
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


def test_a_model_that_answers_otherwise_each_time_is_not_saved(
    run_training: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: CNN, images_BCHW: Tensor) -> Tensor:
        features = nn.functional.dropout(self.features(images_BCHW), 0.5)  # also in evaluation, which is a mistake
        logits_BK: Tensor = self.classify(features)
        return logits_BK

    with monkeypatch.context() as patch:
        patch.setattr(CNN, "forward", forward)
        run = run_training("trainer.max_epochs=1", "tracking=mlflow", "register=true", "model=cnn")
        why = f"the model of {run.folder} is not exported: the model answers otherwise when it is asked again: "
        assert f"the model is not registered: {why}something in it is random" in run.log.read_text()
        assert run.log.read_text().count(f"Try again: make promote RUN={run.folder}\n") == 1
        for refuses in (promote, lambda run: serve(1, "127.0.0.1", "digits", run)):
            with pytest.raises(UserError) as error:
                refuses(run)
            assert str(error.value).startswith(why)
        assert not list(run.folder.glob("model*"))
        assert run.finished()
        assert status(run) == "FINISHED"
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert not client.search_registered_models()
    assert promote(run) == 1  # the mistake is corrected
    assert "model" in {file.path for file in client.list_artifacts(str(run.mlflow_id()))}


def test_a_model_that_was_exported_is_not_kept_when_the_training_goes_on(run_training: Train) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow", "register=true", "model=mlp")
    assert run.model.is_dir()
    run_training(f"run_dir={run.folder}", "trainer.max_epochs=2", "register=false")
    assert not run.model.exists()
    assert promote(run) == 1
    assert run.model.is_dir()


def test_code_that_changed_since_the_training_is_named_when_a_model_is_exported(
    run_training: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow", "model=mlp")
    known = json.loads(run.fingerprint.read_text())
    assert "model.py" in known
    run.fingerprint.write_text(json.dumps({**known, "model.py": "another", "gone.py": "is not there any more"}))
    assert promote(run) == 1
    said = "the model is exported by today's code: gone.py, model.py changed since the run was trained\n"
    assert said in "".join(capsys.readouterr())
    assert promote(run) == 1  # what is there is taken
    assert "exported" not in "".join(capsys.readouterr())


def test_an_export_that_makes_nothing_is_no_model(run_training: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_training("trainer.max_epochs=1", "tracking=mlflow", "model=mlp")
    monkeypatch.setattr("ml_project.predict.export", lambda _: None)
    with pytest.raises(UserError) as refused:
        promote(run)
    assert str(refused.value) == (
        f"ml_project.predict.export has made no model for {run.folder}. Let it call runengine.save_model."
    )
    assert not MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).search_registered_models()


@pytest.mark.parametrize("more", ["", "evaluate_ages.py"])
def test_what_exports_the_model_of_a_second_script(
    run_training: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: str
) -> None:
    """`predict`, unless the script is of another task."""
    import ml_project

    run = run_training("trainer.max_epochs=1", "tracking=mlflow", "model=mlp")
    run.about.write_text(run.about.read_text().replace("ml_project.train", "ml_project.ages"))
    if not more:
        assert run.export_module() == "ml_project.predict"
        return
    (tmp_path / more).touch()
    monkeypatch.setattr(ml_project, "__path__", [*ml_project.__path__, str(tmp_path)])
    with pytest.raises(UserError) as refused:
        have_model(run)
    assert str(refused.value) == (
        f"{run.folder} has no model to export: src/ml_project/predict_ages.py has no function `export(run)` that makes "
        "it. Write one: it calls runengine.save_model."
    )
    (tmp_path / "predict_ages.py").write_text("from ml_project.predict import export\n", encoding="utf-8")
    run.about.write_text(run.about.read_text().replace("ml_project.ages", "ml_project.train"))
    assert run.export_module() == "ml_project.predict"


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
    save_model(Run(tmp_path), model, tokens_BL, {"words": ["a"]})
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


def test_a_model_without_a_row_for_each_example_is_not_saved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(UserError) as refused:
        save_model(run, Mean(), torch.ones(4, 2), {})
    assert str(refused.value) == (
        f"the model of {tmp_path} is not exported: a model must give a row for each of 1 examples, got ()."
    )
    assert not list(tmp_path.glob("model*"))
    save_model(run, nn.Linear(2, 3), torch.ones(4, 2), {})
    assert run.model.is_dir()


@pytest.mark.parametrize("started", [{"LOCAL_RANK": "1"}, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}])
def test_only_the_first_of_several_processes_writes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: dict[str, str]
) -> None:
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    run = Run(tmp_path / "run")
    (run.folder / "model.new").mkdir(parents=True)  # what the first is writing
    save_model(run, nn.Linear(2, 3), torch.ones(4, 2), {})
    save_test_metrics(run, {"test/loss": 1.0})
    assert [file.name for file in run.folder.iterdir()] == ["model.new"]


def test_a_cut_out_example_makes_a_model_that_takes_any_batch(tmp_path: Path) -> None:
    import mlflow

    run, model = Run(tmp_path), nn.Linear(3, 2)
    save_model(run, model, torch.randn(8, 5)[:, 1:4], {})
    rows = torch.randn(2, 3)
    served = mlflow.pyfunc.load_model(str(run.model)).predict(rows.numpy())
    torch.testing.assert_close(torch.from_numpy(served), model(rows).detach())
