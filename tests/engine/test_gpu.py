"""What only a GPU can show; skipped where PyTorch can use none."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
import torch
from conftest import weights
from ml_project.task import ImageClassifier
from runengine import Run

Train = Callable[..., Run]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch can use no GPU here")


def test_a_training_on_the_gpu_is_resumed_within_an_epoch(run_training: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("trainer=gpu", "trainer.max_epochs=3", "trainer.precision=32-true")
    straight = run_training(*settings)
    step = ImageClassifier.training_step

    def interrupted(self: ImageClassifier, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if self.trainer.global_step == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "training_step", interrupted)
        with pytest.raises(SystemExit, match="75"):
            run_training(*settings, "run_dir=runs/x")
    resumed = run_training("run_dir=runs/x")
    one, other = weights(straight), weights(resumed)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-2, atol=1e-3)  # the order of sums differs


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two GPUs")
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_two_gpus_train_one_model(run_training: Train, trainer: str) -> None:
    run = run_training(f"trainer={trainer}", "trainer.accelerator=gpu", "trainer.max_epochs=1")
    assert run.finished()
