"""A run's rows of metrics: into its folder, from there to TensorBoard and, in a thread of its own, to MLflow.

The training never waits for MLflow, and does not end because of it. What could not be sent stays in the folder, where
`make sync`, or the next start, finds it: mlflow_sync.py.
"""

from __future__ import annotations

import copy
import functools
import logging
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings.console import first_line
from . import mlflow_client, mlflow_sync, payload

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

Row = dict[str, float]

FIRST_AFTER_S = 3.0  # the training's first steps come before the import of MLflow, which takes seconds
SEND_EVERY_S = 1.0  # rows that come within this time go together
TRY_AGAIN_S = (1.0, 60.0)  # after a failure, then twice as long each time, at most
NO_CURVES = ("best/", "epoch", "speed/", "system/")  # TensorBoard would show them first
# how long the end of a run waits for an answer, and for all of them; Slurm gives a preempted job 30 s or so
PATIENCE_S = {"FINISHED": (10.0, 60.0), "FAILED": (5.0, 30.0), "KILLED": (5.0, 15.0)}

log = logging.getLogger(__name__)


class Tracker:
    """Keeps the rows of a run.

    Args:
        folder: of the run; it has been made.
        uri: of MLflow's store, or None.
        tensorboard: write TensorBoard's files.
        details: to TensorBoard also the graph and histograms.
        system_every_s: how often the machine's load becomes a row; None for never.
        new: the folder has never been trained in.
    """

    def __init__(
        self,
        folder: Path,
        uri: str | None,
        *,
        tensorboard: bool = False,
        details: bool = False,
        system_every_s: float | None = None,
        new: bool = False,
    ) -> None:
        self.folder = folder.absolute()
        self.details = details and tensorboard
        self.drawn = False
        self.adding = threading.Lock()
        payload.cut_off_half_a_row(self.folder)
        rows = payload.read_rows(self.folder)
        self.known = {(name, row["step"]) for row in rows for name in row["metrics"]}
        self.rows = rows if tensorboard else None
        self.sender = Sender(self.folder, uri, new=new) if uri else None
        self.system = None
        if uri and system_every_s:
            num_samples = sum(any(name.startswith("system/") for name in row["metrics"]) for row in rows)
            self.system = SystemLoad(system_every_s, num_samples, self.add)

    @functools.cached_property
    def writer(self) -> Any:
        """TensorBoard's, or None; made for the first row, as its import takes longer than the first step."""
        return None if self.rows is None else _tensorboard(self.folder, self.rows)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row; a metric that has been measured at this step, before the run was killed, is not changed."""
        with self.adding:
            new = {name: value for name, value in metrics.items() if (name, step) not in self.known}
            if not new:
                return
            now_s, writer = time.time(), self.writer
            payload.add_row(self.folder, step, new, int(now_s * 1000))
            self.known |= {(name, step) for name in new}
            if writer:
                _draw_scalars(writer, step, new, now_s)
        if self.sender:
            self.sender.wake.set()

    def draw(self, task: LightningModule, step: int) -> None:
        """Into TensorBoard: once the graph of a task that has an `example_input_array`; histograms of the weights."""
        if not self.writer:
            return
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

    def close(self, status: str, give_up: Callable[[], bool] = lambda: False) -> None:
        """End as FINISHED, FAILED or KILLED; waits for MLflow as long as it answers.

        Args:
            status: of the run.
            give_up: true if the user wants to go.
        """
        if self.system:
            self.system.stop()
        if "writer" in self.__dict__ and self.writer:
            self.writer.close()
        if self.sender:
            self.sender.close(status, give_up)


class Sender:
    """A thread that keeps MLflow equal to the folder.

    Args:
        folder: of the run.
        uri: of MLflow's store.
        new: MLflow cannot know this folder yet.
    """

    def __init__(self, folder: Path, uri: str, *, new: bool = False) -> None:
        self.folder = folder
        self.uri = uri
        self.wake = threading.Event()
        self.closing = threading.Event()
        self.status = "RUNNING"
        self.failing = ""
        self.asked_at: float | None = None  # while MLflow is asked
        self.mirror = mlflow_sync.MlflowSync(folder, uri, new=new)
        mlflow_sync.note(folder, self.status)
        self.thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self.thread.start()

    def close(self, status: str, give_up: Callable[[], bool]) -> None:
        self.status = status
        mlflow_sync.note(self.folder, status, self.failing)
        self.closing.set()
        self.wake.set()
        answer_s, all_s = PATIENCE_S[status]
        if not self.uri.startswith("http"):  # a database is slow only while its tables are made, the first time
            answer_s = all_s
        started_at = time.monotonic()
        answered_at = self.asked_at or started_at
        num_answers, told = self.mirror.num_answers, False
        while self.thread.is_alive() and not give_up():
            self.thread.join(0.1)
            now = time.monotonic()
            if self.mirror.num_answers != num_answers:
                num_answers, answered_at = self.mirror.num_answers, now
            if now - answered_at > answer_s or now - started_at > all_s:
                break
            if not told and now - started_at > 3:
                told = True
                log.info("sending the rest to MLflow")
        if mlflow_sync.unsent(self.folder).exists():
            why = self.failing or "it answers too slowly"
            mlflow_sync.note(self.folder, status, why)
            log.warning("MLflow has not got everything of this run (%s). Send the rest: make sync", why)

    def _work(self) -> None:
        wait_s = TRY_AGAIN_S[0]
        self.wake.wait(FIRST_AFTER_S)
        while True:
            closing = self.closing.is_set()
            self.wake.clear()
            self.asked_at = time.monotonic()
            try:
                if closing:
                    self.mirror.finish(self.status)
                    return
                self.mirror.update()
            except Exception as error:  # of any kind: the training continues
                self.mirror.ask_again()
                self._tell(error)
                self.asked_at = None
                if closing:
                    return
                self.closing.wait(wait_s)
                wait_s = min(2 * wait_s, TRY_AGAIN_S[1])
                continue
            self.asked_at = None
            if self.failing:
                log.info("MLflow at %s answers again", mlflow_client.without_password(self.uri))
                self.failing, wait_s = "", TRY_AGAIN_S[0]
            self.wake.wait()
            self.closing.wait(SEND_EVERY_S)

    def _tell(self, error: Exception) -> None:
        """Once, until it answers again."""
        if not self.failing and not self.closing.is_set() and not isinstance(error, payload.NotYet):
            log.warning(
                "MLflow at %s does not take this run (%s). Training continues; everything is kept in the run's folder",
                mlflow_client.without_password(self.uri),
                mlflow_client.why(error),
            )
        log.debug("MLflow", exc_info=error)
        self.failing = mlflow_client.why(error)


class SystemLoad:
    """A thread that measures the machine: CPU, memory, disk, network, and GPUs, under the names MLflow shows.

    Args:
        every_s: seconds between two rows.
        num_samples: how many rows there are already; a row's step is its number.
        add: what takes a row.
    """

    def __init__(self, every_s: float, num_samples: int, add: Callable[[int, Mapping[str, float]], None]) -> None:
        self.every_s = every_s
        self.num_samples = num_samples
        self.add = add
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work, name="system", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(2)

    def _work(self) -> None:
        if self.stopping.wait(min(FIRST_AFTER_S, self.every_s)):
            return
        try:
            monitors = _monitors()
            for monitor in monitors:
                monitor.collect_metrics()  # the first load of the CPU is always 0
                monitor.clear_metrics()
            while not self.stopping.wait(self.every_s):
                metrics: Row = {}
                for monitor in monitors:
                    monitor.collect_metrics()
                    metrics |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                    monitor.clear_metrics()
                self.add(self.num_samples, metrics)
                self.num_samples += 1
        except Exception as error:
            log.warning("the machine's load is not recorded: %s", first_line(error))


def _monitors() -> list[Any]:
    """MLflow's own, without what sends their values."""
    mlflow_client.quiet_mlflow()
    from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor

    kinds: list[Callable[[], Any]] = [
        cpu_monitor.CPUMonitor, disk_monitor.DiskMonitor, network_monitor.NetworkMonitor, gpu_monitor.GPUMonitor,
    ]  # fmt: skip
    monitors = []
    for kind in kinds:
        with suppress(Exception):  # no NVIDIA driver, no network, ...
            monitors.append(kind())
    return monitors


def _tensorboard(folder: Path, rows: Sequence[dict[str, Any]]) -> Any:
    """TensorBoard's files of this run, written again from the rows there are, so that each step is in them once."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    writer = SummaryWriter(folder / "tensorboard", flush_secs=10)
    for row in rows:
        _draw_scalars(writer, row["step"], row["metrics"], row["time_ms"] / 1000)
    return writer


def _draw_scalars(writer: Any, step: int, metrics: Mapping[str, float], time_s: float) -> None:
    for name, value in metrics.items():
        if not name.startswith(NO_CURVES):
            writer.add_scalar(name, value, step, time_s)
