"""A run's rows of metrics: into its folder, from there to TensorBoard and to MLflow, which never fail a training."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..runs.run import Run
from ..settings import process
from ..settings.files import drop_half_a_line
from . import payload
from .sender import Later, Sender
from .tensorboard import TensorBoard

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

Row = dict[str, float]


class Tracker:
    """Keeps the rows of a run.

    Args:
        run: its folder has been made.
        uri: of MLflow's store, or None.
        tensorboard: write TensorBoard's files.
        details: to TensorBoard also the graph and histograms.
        system_every_s: how often the machine's load becomes a row; None for never.
    """

    def __init__(
        self, run: Run, uri: str | None, *, tensorboard: bool, details: bool, system_every_s: float | None
    ) -> None:
        self.run = run = Run(run.folder.absolute())  # a notebook changes the current folder
        self.details = details and tensorboard
        drop_half_a_line(run.metric_rows)
        rows = payload.read_rows(run)
        self.known = {(name, row["step"]) for row in rows for name in row["metrics"]}
        self.rows = rows if tensorboard else None
        self.sender: Sender | Later | None = None
        if uri and process.SENDS_LATER in os.environ:
            self.sender = Later(run)
        elif uri:
            self.sender = Sender(run, uri, new=run.num_starts() == 1, system_every_s=system_every_s)

    @functools.cached_property
    def tensorboard(self) -> TensorBoard | None:
        """Made for the first row, as its import takes longer than the first step."""
        return None if self.rows is None else TensorBoard(self.run, self.rows)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row; a metric that has been measured at this step, before the run was killed, is not changed."""
        new = {name: value for name, value in metrics.items() if (name, step) not in self.known}
        if not new:
            return
        now_s, tensorboard = time.time(), self.tensorboard
        payload.add_row(self.run, step, new, int(now_s * 1000))
        self.known |= {(name, step) for name in new}
        if tensorboard:
            tensorboard.add(step, new, now_s)

    def draw(self, task: LightningModule, step: int) -> None:
        """The task as it is at this step, into TensorBoard."""
        if self.tensorboard:
            self.tensorboard.draw(task, step)

    def close(self, status: str, give_up: Callable[[], bool] = lambda: False) -> None:
        """End as FINISHED, FAILED or KILLED; waits for MLflow as long as it answers.

        Args:
            status: of the run.
            give_up: true if the user wants to go.
        """
        if "tensorboard" in self.__dict__ and self.tensorboard:
            self.tensorboard.writer.close()
        if self.sender:
            self.sender.close(status, give_up)
