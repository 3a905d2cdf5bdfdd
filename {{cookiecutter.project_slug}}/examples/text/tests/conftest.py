"""What the tests share: the text of `conf/prepare.yaml`, split once into a folder of their own; a short training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

import runengine

from ml_project.data import TextData
from ml_project.prepare import from_settings
from ml_project.train import build_data

BATCHES = 4  # of an epoch

torch.set_num_threads(1)  # the models are small: more threads would only wait for each other


def prepare_as_configured(folder: Path) -> dict[str, Any]:
    """The content of split.json."""
    cfg = runengine.compose("prepare")
    cfg.folder = folder.as_posix()
    if cfg.dataset.from_python:  # not into the project's own folder
        cfg.dataset.file = (folder.parent / "raw.txt").as_posix()
    return from_settings(cfg)


@pytest.fixture(scope="session")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "processed"
    prepare_as_configured(folder)
    return folder


@pytest.fixture(scope="session")
def short(processed: Path) -> list[str]:
    """Settings of a training of seconds: on the CPU, some batches of the prepared data, recorded nowhere else."""
    cfg = runengine.compose("train", data := [f"data.folder={processed.as_posix()}"])
    batch_size = max(1, min(cfg.data.batch_size, len(build_data(cfg).split("train")) // BATCHES))
    few = [f"data.batch_size={batch_size}", f"trainer.limit_train_batches={BATCHES}", "trainer.limit_val_batches=4"]
    return [*data, *few, "trainer=cpu", "tracking=off"]


@pytest.fixture
def cfg(short: list[str]) -> DictConfig:
    return runengine.compose("train", short)


@pytest.fixture
def data(cfg: DictConfig) -> TextData:
    return build_data(cfg)
