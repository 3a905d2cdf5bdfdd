"""Every test works in a folder of its own, with data prepared once and tracking in that folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ml_project.config import compose
from ml_project.prepare import prepare
from ml_project.run import Run
from ml_project.train import train

torch.set_num_threads(1)  # the models are small: more threads would only wait for each other


@pytest.fixture(scope="session")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "processed"
    prepare(folder, split_seed=0, val_fraction=0.15, test_fraction=0.2)
    return folder


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, processed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, with `data/processed` in it."""
    shutil.copytree(processed, tmp_path / "data/processed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path.as_posix()}/mlflow.db")
    return tmp_path


@pytest.fixture
def run_training() -> Callable[..., Run]:
    """Trains on the CPU, a few batches an epoch, without tracking unless `tracking=mlflow` is given."""

    def run(*overrides: str) -> Run:
        typed = ["trainer=cpu", "tracking=off", "trainer.limit_train_batches=4", *overrides]
        return train(compose("train", typed), overrides)

    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    """The weights in the last checkpoint."""
    state: dict[str, torch.Tensor] = torch.load(run.last, weights_only=True)["state_dict"]
    return state
