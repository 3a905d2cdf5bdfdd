"""TensorBoard's files of a run: curves, and when asked for the graph and histograms of the weights."""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..runs.run import Run
from ..settings.console import first_line

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

NO_CURVES = ("best/", "epoch", "speed/", "system/")  # TensorBoard would show them first

log = logging.getLogger(__name__)


class TensorBoard:
    """Begins with the rows there are, so that each step is in the files once.

    Args:
        run: its files are written again.
        rows: of `metrics.jsonl`.
    """

    def __init__(self, run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(run.tensorboard, ignore_errors=True)
        self.writer: Any = SummaryWriter(run.tensorboard, flush_secs=10)
        self.drawn = False
        for row in rows:
            self.add(row["step"], row["metrics"], row["time_ms"] / 1000)

    def add(self, step: int, metrics: Mapping[str, float], time_s: float) -> None:
        for name, value in metrics.items():
            if not name.startswith(NO_CURVES):
                self.writer.add_scalar(name, value, step, time_s)

    def draw(self, task: LightningModule, step: int) -> None:
        """Once the graph of a task that has an `example_input_array`; histograms of the weights."""
        if not self.drawn and task.example_input_array is not None:
            self._draw_graph(task)
        self.drawn = True
        for name, parameter in task.named_parameters():
            self.writer.add_histogram(name, parameter.detach().float().cpu(), step)

    def _draw_graph(self, task: LightningModule) -> None:
        """From a copy in evaluation: neither random numbers nor the statistics of the norms may change."""
        import torch

        class Forward(torch.nn.Module):
            def __init__(self, copied: Any) -> None:
                super().__init__()
                self.task = copied

            def forward(self, *inputs: Any) -> Any:
                return self.task(*inputs)

        trainer = task.trainer
        task.trainer = None  # not to be copied
        try:
            copied = copy.deepcopy(task).cpu().eval()
        finally:
            task.trainer = trainer
        copied.trainer = trainer  # tracing looks at every attribute, and this one must be there
        example = copied.example_input_array
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorBoard traces by torch.jit, which is old
            try:
                self.writer.add_graph(Forward(copied), example)
            except Exception as error:  # whatever tracing cannot follow
                log.warning("TensorBoard gets no graph of the model: %s", first_line(error))
