"""runengine.testing: a project's own test of its resume passes where that is exact, and says why where it is not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ml_project.data import Batch, ImageData
from ml_project.task import ImageClassifier
from ml_project.train import train
from runengine import UserError
from runengine.testing import assert_resumes_exactly
from torch.utils.data import DataLoader, Sampler

UNSEEDED = torch.Generator()


class OwnOrder(Sampler[int]):
    """Another order at each iteration, from a generator that no checkpoint knows."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.length, generator=UNSEEDED).tolist())


class ShufflesByItself(ImageData):
    def train_dataloader(self) -> DataLoader[Batch]:
        split = self.split("train")
        return DataLoader(split, self.batch_size, sampler=OwnOrder(len(split)), collate_fn=lambda batch: batch)


class CountsByItself(ImageClassifier):
    """A number that grows with each batch of an epoch, kept in a plain attribute."""

    def on_train_epoch_start(self) -> None:
        self.num_batches = 0

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.num_batches = getattr(self, "num_batches", 0) + 1
        if self.trainer.is_last_batch:
            self.log("train/num_batches", float(self.num_batches), on_step=False, on_epoch=True)
        return super().training_step(batch)


def sentence_of(*overrides: str) -> str:
    with pytest.raises(AssertionError) as error:
        assert_resumes_exactly(train, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("settings", [[], ["lr_scheduler=cosine", "trainer.max_epochs=1"], ["data.num_workers=1"]])
def test_what_resumes_exactly_passes_and_leaves_nothing(settings: list[str], workplace: Path) -> None:
    before = sorted(workplace.rglob("*"))
    handler = signal.getsignal(signal.SIGTERM)
    assert_resumes_exactly(train, settings)
    assert sorted(workplace.rglob("*")) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_an_order_that_nobody_knows_is_found_and_the_layer_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageData, "train_dataloader", ShufflesByItself.train_dataloader)
    sentence = sentence_of()
    assert sentence.startswith("the resumed training does not equal the uninterrupted one: ")
    assert "weights differ, the first is model." in sentence
    assert "Make the training loader by runengine.loader(...), which knows its position" in sentence


def test_a_metric_that_loses_its_count_is_found_and_the_epoch_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_project.task.ImageClassifier", CountsByItself)
    assert sentence_of() == (
        "the resumed training does not equal the uninterrupted one: train/num_batches of epoch 2 is 2.0, not 4.0. Make "
        "a metric over an epoch a torchmetrics Metric that is an attribute of the task, or log it by "
        "self.log(on_epoch=True)."
    )


def test_an_epoch_of_one_batch_has_no_middle() -> None:
    assert sentence_of("trainer.limit_train_batches=1") == (
        "the training cannot be stopped in the middle of an epoch: its epochs have fewer than two batches. Try smaller "
        "batches."
    )


def test_a_mistake_in_the_settings_stays_a_sentence(workplace: Path) -> None:
    (workplace / "data/processed/train_images.npy").unlink()
    with pytest.raises(UserError, match=r"train_images\.npy does not exist"):
        assert_resumes_exactly(train)


def test_inside_a_job_of_slurm_nobody_asks_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", "")  # no scontrol is found: to call it would fail
    assert_resumes_exactly(train)
    assert os.environ["SLURM_JOB_ID"] == "7"
