"""Short epochs write few checkpoints and lose nothing; the bar is drawn by time; the optimizer is one kernel."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import HERE, STEPS, same, stopped
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from runengine import Run
from runengine.training import checkpoints, device, progress_bar
from runengine.training.history import History
from torch.utils.data import DataLoader, TensorDataset

Train = Callable[..., Run]
AtStep = Callable[..., None]
EPOCHS = 8
MANY = f"trainer.max_epochs={EPOCHS}"


@pytest.fixture
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all epochs of a test together took less than a second."""
    monkeypatch.setattr(checkpoints, "EPOCHS_S", 1e9)


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


def equal_best(one: Run, other: Run) -> bool:
    a, b = read(one.best), read(other.best)
    equal = [torch.equal(value, b["state_dict"][name]) for name, value in a["state_dict"].items()]
    return a["epoch"] == b["epoch"] and all(equal)


def test_short_epochs_write_few_checkpoints_and_the_same(run_training: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = checkpoints.AtomicCheckpointIO._write

    def note(self: Any, checkpoint: dict[str, Any], file: Path) -> None:
        written.append(f"{file.name} {checkpoint['epoch']}")
        write(self, checkpoint, file)

    monkeypatch.setattr(checkpoints.AtomicCheckpointIO, "_write", note)
    monkeypatch.setattr(checkpoints, "EPOCHS_S", 0.0)
    each = run_training(MANY)
    assert [line for line in written if line.startswith("last")] == [f"last.ckpt {epoch}" for epoch in range(EPOCHS)]
    best = [line for line in written if line.startswith("best")]
    assert len(best) > 2

    written.clear()
    monkeypatch.setattr(checkpoints, "EPOCHS_S", 1e9)
    few = run_training(MANY)
    # what last.ckpt says of best.ckpt is true whenever the process dies
    assert written == ["best.ckpt 0", "last.ckpt 0", best[-1], f"last.ckpt {EPOCHS - 1}"]
    assert same(few, each)
    assert equal_best(few, each)
    assert few.metrics.read_text() == each.metrics.read_text()


@pytest.mark.parametrize("killed_in", [1, EPOCHS - 2])
def test_a_kill_between_two_checkpoints_costs_no_more_than_their_epochs(
    run_training: Train, at_step: AtStep, short_epochs: None, killed_in: int
) -> None:
    straight = run_training(MANY)
    # a copy of the folder in the middle of an epoch is what a kill would leave
    at_step(killed_in * STEPS + 1, lambda: shutil.copytree("runs/x", "runs/killed"))
    run_training(MANY, HERE)
    assert read(Path("runs/killed/checkpoints/last.ckpt"))["epoch"] == 0
    resumed = run_training("run_dir=runs/killed")
    assert same(resumed, straight)
    assert equal_best(resumed, straight)


def test_an_error_between_two_checkpoints_leaves_the_best_epoch(
    run_training: Train, at_step: AtStep, short_epochs: None
) -> None:
    def crash() -> None:
        raise RuntimeError("a mistake in a task")

    straight = run_training("trainer.max_epochs=5")
    at_step(5 * STEPS + 1, crash)
    with pytest.raises(RuntimeError, match="a mistake in a task"):
        run_training(MANY, HERE)
    assert equal_best(Run(Path("runs/x")), straight)


def test_a_signal_between_two_epochs_saves_after_the_next_step(
    run_training: Train, monkeypatch: pytest.MonkeyPatch, short_epochs: None
) -> None:
    straight = run_training(MANY)
    start = History.on_train_epoch_start

    def interrupted(self: History, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        start(self, trainer, pl_module)
        if trainer.current_epoch == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(History, "on_train_epoch_start", interrupted)
        assert stopped(run_training, MANY) == 75
    assert read(Path("runs/x/checkpoints/last.ckpt"))["global_step"] == 3 * STEPS + 1
    assert same(run_training(HERE), straight)


@pytest.mark.parametrize("settings", [
    [f"+trainer.max_steps={5 * STEPS}", "trainer.max_epochs=100"],
    ["patience=1", "optimizer.lr=1e-12", "model.dropout=0", "trainer.max_epochs=100"],
    ["+trainer.max_time={seconds: 2}", "trainer.max_epochs=1000000"],
])  # fmt: skip
def test_the_last_epoch_is_saved_however_the_training_ends(
    run_training: Train, short_epochs: None, settings: list[str]
) -> None:
    run = run_training(*settings)
    assert read(run.last)["epoch"] == len(run.history.read_text().splitlines()) - 2  # a line of names; from 0


class Terminal:
    """Where a bar is drawn."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("every_s", "fewest", "most"), [(0.0, 2 * STEPS * EPOCHS, 10**6), (1e9, 1, 6 * EPOCHS)])
def test_the_bar_is_drawn_by_time(
    run_training: Train, monkeypatch: pytest.MonkeyPatch, every_s: float, fewest: int, most: int
) -> None:
    out = Terminal()
    monkeypatch.setattr(progress_bar, "EVERY_S", every_s)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", out)
    run_training(MANY)
    drawn = re.findall(r"(\d+)/(\d+)", out.text)
    assert fewest <= len(drawn) <= most
    assert drawn[-1] == (str(STEPS), str(STEPS))  # what is left at the end
    assert f"epoch {EPOCHS} of {EPOCHS}: 100%" in out.text
    lines = re.findall(r"(.*)(epoch \d of \d  train/.*)\n", out.text)
    assert len(lines) == EPOCHS
    assert all(before == "" or before.endswith(("\r", "\x1b[A")) for before, _ in lines)  # never behind a bar


def test_a_step_on_the_cpu_is_one_kernel(run_training: Train) -> None:
    state = read(run_training("trainer.max_epochs=1").last)
    assert state["optimizer_states"][0]["param_groups"][0]["fused"] is True


class Words(pl.LightningModule):
    """Its gradients are sparse, which no fused kernel takes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(9, 2, sparse=True)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return torch.as_tensor(self.table(batch[0]).sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.filterwarnings("ignore")  # of Lightning, which the engine silences
def test_sparse_gradients_are_stepped_as_ever(tmp_path: Path) -> None:
    task = Words()
    before = task.table.weight.detach().clone()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[device.Fused()], default_root_dir=tmp_path,
        plugins=[LightningEnvironment()],
    )  # fmt: skip
    trainer.fit(task, DataLoader(TensorDataset(torch.arange(3)), batch_size=3))
    torch.testing.assert_close(before - task.table.weight, torch.tensor([[1.0, 1.0]] * 3 + [[0.0, 0.0]] * 6))
