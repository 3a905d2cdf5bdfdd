"""What a training that was stopped repeats of its data: nothing with the engine's loader, and never in silence."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import HERE, STEPS, Killed, same, stopped
from ml_project.data import Batch, ImageData
from ml_project.task import ImageClassifier
from ml_project.train import train
from runengine import Run, loader
from runengine.testing import assert_resumes_exactly
from torch.utils.data import DataLoader

Train = Callable[..., Run]
AtStep = Callable[..., None]
EPOCHS = "trainer.max_epochs=3"
REPEATED = "but its data loader does not know its position"


def kill() -> None:
    raise Killed


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training data come as in PyTorch's documentation: shuffled by the global random state."""

    def train_dataloader(self: ImageData) -> DataLoader[Any]:
        return DataLoader(self.split("train"), self.batch_size, shuffle=True, collate_fn=lambda batch: batch)

    monkeypatch.setattr(ImageData, "train_dataloader", train_dataloader)


@pytest.mark.usefixtures("plain")
def test_a_plain_loader_is_resumed_exactly_at_the_end_of_an_epoch(run_training: Train, at_step: AtStep) -> None:
    straight = run_training(EPOCHS)
    at_step(STEPS, kill)
    with pytest.raises(Killed):
        run_training(HERE, EPOCHS)
    resumed = run_training(HERE)
    assert same(resumed, straight)
    assert REPEATED not in resumed.log.read_text()


@pytest.mark.usefixtures("plain")
def test_a_plain_loader_repeats_examples_in_the_middle_of_an_epoch_and_the_log_says_so(
    run_training: Train, at_step: AtStep
) -> None:
    straight = run_training(EPOCHS)
    at_step(STEPS + 1, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped(run_training, EPOCHS) == 75
    resumed = run_training(HERE)
    said = (
        "epoch 2 is resumed after 2 batches, but its data loader does not know its position: it begins again, so some "
        "examples come twice in this epoch. runengine.loader(...) makes one that repeats nothing"
    )
    assert resumed.log.read_text().count(said) == 1
    assert resumed.finished()
    epochs = [line.split(",")[:2] for line in resumed.history.read_text().splitlines()]
    assert epochs == [line.split(",")[:2] for line in straight.history.read_text().splitlines()]


class Saving(DataLoader[Any]):
    """As torchdata's: the place that it saves is its own matter."""

    def state_dict(self) -> dict[str, int]:
        return {"batches": 2}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == self.state_dict()


def test_a_loader_that_saves_its_place_is_resumed_and_the_log_says_what_nobody_knows(
    run_training: Train, at_step: AtStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (
        "the data loader has restored a position that it saved itself. Whether the examples are those of a training "
        "that was not stopped, this engine cannot see: runengine.testing.assert_resumes_exactly(...) finds out"
    )

    def train_dataloader(self: ImageData) -> Any:
        return Saving(self.split("train"), self.batch_size, shuffle=True, collate_fn=lambda batch: batch)

    monkeypatch.setattr(ImageData, "train_dataloader", train_dataloader)
    at_step(STEPS + 1, lambda: signal.raise_signal(signal.SIGTERM))
    assert stopped(run_training, EPOCHS) == 75
    resumed = run_training(HERE)
    assert resumed.log.read_text().count(said) == 1
    assert REPEATED not in resumed.log.read_text()
    with pytest.raises(AssertionError):  # the function that the sentence names finds it: this loader begins again
        assert_resumes_exactly(train)


def test_means_over_an_interrupted_epoch_have_the_same_bits(
    run_training: Train, at_step: AtStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def training_step(self: ImageClassifier, batch: Batch) -> torch.Tensor:
        images_BCHW, labels_B = batch
        loss: torch.Tensor = self.loss(self(images_BCHW), labels_B)
        self.log("train/loss", loss, on_epoch=True, batch_size=len(labels_B))
        self.log("train/worst", loss, on_epoch=True, reduce_fx="max", batch_size=len(labels_B))
        self.log("train/examples", float(len(labels_B)), on_epoch=True, reduce_fx="sum", batch_size=len(labels_B))
        return loss

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)
    whole = ("trainer.limit_train_batches=1.0", "trainer.max_epochs=2")  # the last batch is smaller
    straight = run_training(*whole)
    header = straight.history.read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/worst", "train/examples"} <= {name.removesuffix("_epoch") for name in header}
    for action in (lambda: signal.raise_signal(signal.SIGTERM), kill):
        at_step(STEPS + 1, action)
        with pytest.raises((SystemExit, Killed)):
            run_training(HERE, "restart_if_changed=true", "checkpoint.every_n_steps=1", *whole)
        resumed = run_training(HERE)
        assert same(resumed, straight)
        assert REPEATED not in resumed.log.read_text()


def test_the_engines_loader_takes_any_data_set() -> None:
    data = [(torch.full((2,), float(number)), number) for number in range(10)]
    once = [batch[1].tolist() for batch in loader(data, 4, None, seed=0, shuffle=True)]  # type: ignore[arg-type]
    again = [batch[1].tolist() for batch in loader(data, 4, None, seed=0, shuffle=True)]  # type: ignore[arg-type]
    other = [batch[1].tolist() for batch in loader(data, 4, None, seed=1, shuffle=True)]  # type: ignore[arg-type]
    assert once == again != other
    assert sorted(number for batch in once for number in batch) == list(range(10))
    straight = [batch[1].tolist() for batch in loader(data, 4, None, seed=0, shuffle=False)]  # type: ignore[arg-type]
    assert straight == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_engines_loader_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    assert len(list(loader(list(range(6)), 2, None, seed=0, shuffle=True))) == 3  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_on_several_processes_is_started_from_anywhere(
    run_training: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conftest import SOURCE

    monkeypatch.setenv("PYTHONPATH", str(SOURCE))  # this process is no `python -m ml_project.train`
    run = run_training("trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1")
    assert run.finished()
    assert re.search(r"epoch 1 of 1 ", run.log.read_text())
