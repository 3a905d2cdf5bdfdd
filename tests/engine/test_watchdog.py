"""A training that hangs ends, says where, and can be resumed; a slow one goes on."""

from __future__ import annotations

import os
import pdb
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import HERE, STEPS, same
from ml_project.data import ImageData, ImageSplit
from runengine import Run, UserError, compose
from runengine.settings.check import check
from runengine.training.history import History
from runengine.training.watchdog import Watchdog
from test_resume import mlflow_record

EPOCHS = "trainer.max_epochs=3"
LEAST_S = 2.0  # a busy machine may itself be slow for a second
QUICK = (EPOCHS, f"watchdog.minutes={LEAST_S / 60}", "watchdog.times=1")
FOR_EVER_S = 100.0  # no test waits for it
Start = Callable[..., int]


@pytest.fixture
def start(run_training: Callable[..., Run], at_step: Callable[..., None], tmp_path: Path) -> Start:
    """Trains in a child, which a watchdog can end, and does something at a step; returns the number of the process."""

    def begin(
        *settings: str, step: int = STEPS + 1, action: Callable[[], object] = lambda: None, where: str = "training_step"
    ) -> int:
        if pid := os.fork():
            return pid
        status = 1
        try:
            os.setsid()
            sys.stdout = sys.stderr = (tmp_path / "output.txt").open("a", buffering=1, encoding="utf-8")
            at_step(step, action, where)
            run_training(HERE, *QUICK, *settings)
            status = 0
        finally:
            os._exit(status)

    return begin


def ended(pid: int) -> int:
    """The exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hang() -> None:
    time.sleep(FOR_EVER_S)


def stacks() -> str:
    return Path("runs/x/hang-0.txt").read_text(encoding="utf-8")


def said() -> str:
    return Path("output.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("where", "part", "step"), [
    ("training_step", "a training step", STEPS + 1),
    ("validation_step", "a validation step", 2 * STEPS),
])  # fmt: skip
def test_a_run_that_hangs_ends_says_where_and_is_resumed(
    run_training: Callable[..., Run], start: Start, where: str, part: str, step: int
) -> None:
    straight = run_training("run_dir=runs/straight", EPOCHS)
    assert ended(start("tracking=mlflow", step=step, action=hang, where=where)) == 75
    sentence = rf"this training hangs: \d+ s in {part}, after step \d, where at most \d+ s are allowed"
    assert re.search(sentence, said())
    assert re.search(sentence, stacks())
    assert "Resume with: python -m ml_project.train run_dir=runs/x" in said()
    assert " in hang" in stacks()
    run = Run(Path("runs/x"))
    assert not run.error.exists()
    assert mlflow_record(run)[0] == "KILLED"
    assert same(run_training(HERE), straight)
    assert mlflow_record(run)[0] == "FINISHED"


@pytest.mark.parametrize("where", ["engine", "plain"])
def test_the_stacks_of_loader_processes_are_there_too(
    start: Start, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whether the engine made the loader, or PyTorch alone."""

    def getitems(self: ImageSplit, indices: Sequence[int]) -> object:
        if 7 in indices:
            hang()
        return before(self, indices)

    def train_dataloader(self: ImageData) -> object:
        return torch.utils.data.DataLoader(self.split("train"), batch_size=32, num_workers=2, collate_fn=tuple)

    before = ImageSplit.__getitems__
    monkeypatch.setattr(ImageSplit, "__getitems__", getitems)
    if where == "plain":
        monkeypatch.setattr(ImageData, "train_dataloader", train_dataloader)
    assert ended(start("data.num_workers=2")) == 75
    assert "s in waiting for a batch, after step" in stacks()
    assert "`make doctor` knows the usual causes (shared memory, open files)" in said()
    assert "in getitems" in stacks()


def test_what_hangs_twice_at_the_same_step_is_not_started_again_by_itself(start: Start) -> None:
    assert ended(start(action=hang)) == 75
    assert ended(start(action=hang)) == 1
    run = Run(Path("runs/x"))
    assert f"it hung at step {STEPS + 1} before: it is not started once more by itself" in said()
    assert f"it hung at step {STEPS + 1} before" in run.error.read_text(encoding="utf-8")
    assert "When the cause is gone, resume with: python -m ml_project.train run_dir=runs/x" in said()
    assert ended(start()) == 0
    assert run.finished()
    assert not run.error.exists()


@pytest.mark.parametrize("where", ["training_step", "validation_step"])
def test_slow_is_not_hanging(start: Start, where: str) -> None:
    """What was hardly measured yet may take longer."""

    def slowly() -> None:
        time.sleep(1.5 * LEAST_S)

    assert ended(start(step=0 if where == "training_step" else STEPS, action=slowly, where=where)) == 0
    assert Run(Path("runs/x")).finished()


def test_how_long_each_part_may_take_follows_from_what_it_took(tmp_path: Path) -> None:
    watchdog = Watchdog(Run(tmp_path), History(Run(tmp_path), None, "min"), lambda: None, minutes=1, times=10)
    assert watchdog.limit_s("a validation step") == 6 * 60
    watchdog.durations["a validation step"] = [1.0, 20.0, 1000.0]  # type: ignore[assignment]
    assert watchdog.limit_s("a validation step") == 10 * 20
    watchdog.durations["a training step"] = [0.1] * 2  # type: ignore[assignment]
    assert watchdog.limit_s("a training step") == 6 * 60
    watchdog.durations["a training step"] = [0.1] * 3  # type: ignore[assignment]
    assert watchdog.limit_s("a training step") == 60
    assert watchdog.limit_s("waiting for a batch") == 60


def test_a_process_that_was_suspended_goes_on(start: Start) -> None:
    ready, write = os.pipe()
    pid = start(action=lambda: os.write(write, b"."))
    os.read(ready, 1)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(2 * LEAST_S)
    os.kill(pid, signal.SIGCONT)
    assert ended(pid) == 0


def test_a_debugger_is_waited_for(start: Start) -> None:
    commands, write = os.pipe()

    def debug() -> None:
        pdb.Pdb(stdin=os.fdopen(commands), stdout=sys.stdout).set_trace()

    pid = start(action=debug)
    time.sleep(2 * LEAST_S)
    os.write(write, b"continue\n")
    assert ended(pid) == 0
    assert "(Pdb)" in said()


@pytest.mark.parametrize(("typed", "sentence"), [
    ("watchdog.minutes=0", "watchdog.minutes must be > 0, got 0."),
    ("watchdog.times=0", "watchdog.times must be >= 1, got 0."),
    ("watchdog.minutes=null", None),
])  # fmt: skip
def test_its_settings(run_training: Callable[..., Run], typed: str, sentence: str | None) -> None:
    if sentence is None:
        assert run_training(typed, "trainer.max_epochs=1").finished()
        return
    with pytest.raises(UserError, match=re.escape(sentence)):
        check(compose("train", [typed]), "train", [typed])
