"""The engine's tests run in the project as it lies in the template, with its own data, models and settings.

    cd "{{cookiecutter.project_slug}}"
    PYTHONPATH=src python -m pytest -c pyproject.toml --confcutdir ../tests/engine ../tests/engine

Every test works in a folder of its own, with data prepared once and tracking in that folder.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_project
import pytest
import torch
from hydra.utils import instantiate
from ml_project.data import Batch
from ml_project.prepare import prepare
from ml_project.task import ImageClassifier
from ml_project.train import train
from pages import Server
from runengine import Run, compose
from runengine.tracking.mlflow_client import mlflow_client

SOURCE = Path(str(ml_project.__file__)).parents[1]  # what PYTHONPATH names, for a program of its own

STEPS = 4  # of each epoch of `run_training`
HERE = "run_dir=runs/x"

torch.set_num_threads(1)  # the models are small: more threads would only wait for each other


@pytest.fixture(scope="session")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "processed"
    cfg = compose("prepare")
    source = instantiate(cfg.dataset, _partial_=True)
    prepare(folder, source, split_seed=0, val_fraction=cfg.val_fraction, test_fraction=cfg.test_fraction)
    return folder


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow: to make its tables takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_client(f"sqlite:///{file.as_posix()}")
    return file


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Runs programs of Python without their imports, which take each some six seconds."""
    with Server(sys.executable) as server:
        yield server


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, processed: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, the root of a project with `data/processed` and `mlflow.db` in it."""
    (tmp_path / "pyproject.toml").write_text('[tool.runengine]\npackage = "ml_project"\n', encoding="utf-8")
    shutil.copytree(processed, tmp_path / "data/processed")
    shutil.copy(database, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path.as_posix()}/mlflow.db")
    return tmp_path


@pytest.fixture
def run_training(processed: Path) -> Callable[..., Run]:
    """Trains on the CPU, four batches an epoch, without tracking unless `tracking=mlflow` is given."""
    num_images = json.loads((processed / "split.json").read_text())["rows"]["train"]
    small = [f"data.batch_size={num_images // 8 * 2}"] if num_images < 4 * compose("train").data.batch_size else []

    def run(*overrides: str) -> Run:
        typed = ["trainer=cpu", "tracking=off", f"trainer.limit_train_batches={STEPS}", *small, *overrides]
        return train.start(compose("train", typed), overrides)

    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    """The weights in the last checkpoint."""
    state: dict[str, torch.Tensor] = torch.load(run.last, weights_only=True)["state_dict"]
    return state


class Killed(BaseException):
    """What nothing catches."""


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do something in the middle of a step of training or validation, counted over all epochs; once."""

    def arrange(step: int, action: Callable[[], object], where: str = "training_step") -> None:
        before = getattr(ImageClassifier, where)

        def changed(self: ImageClassifier, batch: Batch) -> object:
            if self.trainer.global_step == step:
                monkeypatch.setattr(ImageClassifier, where, before)
                if isinstance(result := action(), torch.Tensor):
                    return before(self, batch) * result
            return before(self, batch)

        monkeypatch.setattr(ImageClassifier, where, changed)

    return arrange


def stopped(run_training: Callable[..., Run], *settings: str) -> int:
    """The exit status of a training in HERE that was stopped."""
    with pytest.raises(SystemExit) as stop:
        run_training(HERE, *settings)
    return int(stop.value.code or 0)


def same(one: Run, other: Run) -> bool:
    """Weights and every row of the history, bit for bit."""
    a, b = weights(one), weights(other)
    return all(torch.equal(a[name], b[name]) for name in a) and one.history.read_text() == other.history.read_text()
