"""What the tests share: the data, split once into a folder of their own; a short training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

import runengine

from ml_project.data import Data
from ml_project.prepare import prepare, read
from ml_project.train import build_data

torch.set_num_threads(1)  # the model is small: more threads would only wait for each other


@pytest.fixture(scope="session")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "processed"
    prepare(folder, read(runengine.compose("prepare")))
    return folder


@pytest.fixture(scope="session")
def short(processed: Path) -> list[str]:
    """Settings of a training of seconds: on the CPU, four batches an epoch, recorded nowhere else."""
    return [f"data.folder={processed.as_posix()}", "trainer=cpu", "tracking=off", "trainer.limit_train_batches=4"]


@pytest.fixture
def cfg(short: list[str]) -> DictConfig:
    return runengine.compose("train", short)


@pytest.fixture
def data(cfg: DictConfig) -> Data:
    return build_data(cfg)
