"""Every test works in a folder of its own, with data prepared once and tracking in that folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from ml_project.config import compose
from ml_project.prepare import prepare
from ml_project.run import Run
from ml_project.store import mlflow_client
from ml_project.train import train

torch.set_num_threads(1)  # the models are small: more threads would only wait for each other


@pytest.fixture(scope="session")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "processed"
    cfg = compose("prepare")
    source = instantiate(cfg.source, _partial_=True)
    prepare(folder, source, split_seed=0, val_fraction=cfg.val_fraction, test_fraction=cfg.test_fraction)
    return folder


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow: to make its tables takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_client(f"sqlite:///{file.as_posix()}")
    return file


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, processed: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, with `data/processed` and `mlflow.db` in it."""
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
        typed = ["trainer=cpu", "tracking=off", "trainer.limit_train_batches=4", *small, *overrides]
        return train(compose("train", typed), overrides)

    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    """The weights in the last checkpoint."""
    state: dict[str, torch.Tensor] = torch.load(run.last, weights_only=True)["state_dict"]
    return state
