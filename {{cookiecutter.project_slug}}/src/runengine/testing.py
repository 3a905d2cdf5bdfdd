"""What a project's own tests can assert of its trainings.

    from my_project.train import train
    from runengine.testing import assert_resumes_exactly

    def test_a_stopped_run_resumes_exactly() -> None:
        assert_resumes_exactly(train, ["model=mlp"])

Stopped in the middle of an epoch and resumed, a training must end with the same bits as without a stop.
"""

from __future__ import annotations

import csv
import logging
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from .program import Program
from .runs.run import Run
from .settings import project
from .settings.config import compose, typed_key
from .settings.errors import RESUME_ME

if TYPE_CHECKING:
    import pytorch_lightning as pl

# settings for a training of seconds; the overrides of a test replace them
SHORT = {"trainer": "cpu", "tracking": "off", "trainer.max_epochs": "2", "trainer.limit_train_batches": "4"}
UNEQUAL = "the resumed training does not equal the uninterrupted one"


def assert_resumes_exactly(program: Program, overrides: Sequence[str] = ()) -> None:
    """Train without a stop; train again, stop in the middle of an epoch by SIGTERM, resume; compare bit for bit.

    All of it happens in this process and in a temporary folder, on the CPU, without tracking, for two epochs of four
    batches, unless `overrides` set something else. On a GPU it needs `trainer.deterministic=true`.

    Args:
        program: what `@runengine.main` made of the training function.
        overrides: settings as they are typed on the command line, such as `model=mlp`.

    Raises:
        AssertionError: the weights or the rows of `history.csv` differ, or the training could not be stopped in the
            middle of an epoch.
        UserError: the settings, the data or the model do not fit each other.
    """
    typed = {typed_key(override).lstrip("+~") for override in overrides}
    settings = [*(f"{key}={value}" for key, value in SHORT.items() if key not in typed), *overrides]
    project.use(program.home)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _quietly():
        straight = _train(program, [*settings, f"run_dir={folder}/straight"])
        again = [*settings, f"run_dir={folder}/stopped"]
        _stop(program, again)
        _compare(straight, _train(program, again))


def _train(program: Program, overrides: Sequence[str]) -> Run:
    return program.start(compose(program.config_name, overrides), overrides)


def _stop(program: Program, overrides: Sequence[str]) -> None:
    """Start, and end with the exit status 75 in the middle of an epoch."""
    from .training.checkpoints import LastCheckpoint

    stopped = False

    def stop(self: Any, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        nonlocal stopped
        epoch = min(1, (trainer.max_epochs or 2) - 1)  # the second one, if there is one
        middle = int(min(trainer.num_training_batches, 4)) // 2 - 1
        if not stopped and trainer.current_epoch >= epoch and batch_idx >= middle >= 0:
            stopped = True
            signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(LastCheckpoint, "on_train_batch_start", stop):
        try:
            _train(program, overrides)
        except SystemExit as end:
            if end.code == RESUME_ME:
                return
            raise AssertionError(f"the stopped training has the exit status {end.code}, not {RESUME_ME}.") from end
    why = "it ended before the signal was seen" if stopped else "its epochs have fewer than two batches"
    raise AssertionError(f"the training cannot be stopped in the middle of an epoch: {why}. Try smaller batches.")


def _compare(straight: Run, resumed: Run) -> None:
    import torch

    from .runs.weights import read_checkpoint

    wanted, found = (read_checkpoint(run.last)["state_dict"] for run in (straight, resumed))
    names = [*wanted, *(found.keys() - wanted.keys())]
    different = [
        name for name in names if name not in wanted or name not in found or not torch.equal(wanted[name], found[name])
    ]
    if different:
        raise AssertionError(
            f"{UNEQUAL}: {len(different)} of {len(names)} weights differ, the first is {different[0]}. Make the "
            "training loader by runengine.loader(...), which knows its position, and draw random numbers from the "
            "global generators of PyTorch, NumPy and Python alone."
        )
    (names, *rows), (other_names, *others) = (_read_history(run) for run in (straight, resumed))
    if (names, len(rows)) != (other_names, len(others)):
        raise AssertionError(
            f"{UNEQUAL}: it has {len(others)} epochs of {other_names}, the other {len(rows)} of {names}."
        )
    for epoch, (row, other) in enumerate(zip(rows, others, strict=True), start=1):
        for name, value, got in zip(names, row, other, strict=True):
            if value != got:
                raise AssertionError(
                    f"{UNEQUAL}: {name} of epoch {epoch} is {got}, not {value}. Make a metric over an epoch a "
                    "torchmetrics Metric that is an attribute of the task, or log it by self.log(on_epoch=True)."
                )


def _read_history(run: Run) -> list[list[str]]:
    """The names, and a row for each epoch."""
    return list(csv.reader(run.history.read_text(encoding="utf-8").splitlines()))


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide Slurm, which a test must not ask for anything, and put logging's handlers back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    try:
        with mock.patch.dict(os.environ, outside, clear=True):
            yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
