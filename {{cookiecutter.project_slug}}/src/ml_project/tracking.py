"""A run's rows of metrics in MLflow and TensorBoard. The run's folder has them first; here they are copied.

So a run that is killed between two of its steps has each row exactly once after it was continued: what MLflow has
already is not sent again, and TensorBoard's files are written anew at each start.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from .config import HOW_STARTED, flatten
from .messages import first_line
from .run import Run
from .snapshot import command, git_state

if TYPE_CHECKING:
    from mlflow import MlflowClient

Row = dict[str, float]

log = logging.getLogger(__name__)


def mlflow_client(uri: str) -> MlflowClient:
    """A client of this store; MLflow is quiet and sends nothing to its makers."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    import mlflow

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with _one_at_a_time(uri):
        if (file := _database(uri)) and not file.exists():
            # a process killed while MLflow makes its tables would leave a file that MLflow never opens again
            new = file.with_name(f"{file.name}.new")
            new.unlink(missing_ok=True)
            mlflow.MlflowClient(tracking_uri=f"sqlite:///{new}").search_experiments(max_results=1)
            new.replace(file)
        return mlflow.MlflowClient(tracking_uri=uri)


class Tracker:
    """Copies rows to what `tracking` names; without MLflow and TensorBoard it does nothing.

    Args:
        run: the folder has been made.
        cfg: the run's configuration.
    """

    def __init__(self, run: Run, cfg: DictConfig) -> None:
        self.run = run
        self.uri: str | None = cfg.tracking.mlflow_uri
        self.writer: Any = None
        self.sent: set[tuple[str, int]] = set()
        self.run_id = ""
        self.resumed = False
        if self.uri:
            self.client = mlflow_client(self.uri)
            self.run_id = _open_mlflow_run(self.client, self.uri, run, cfg)
        if cfg.tracking.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(run.folder / "tensorboard", ignore_errors=True)
            self.writer = SummaryWriter(run.folder / "tensorboard")

    def resume(self, rows: Sequence[Row]) -> None:
        """Send what the checkpoint has and the stores lack; once."""
        if self.resumed:
            return
        self.resumed = True
        if self.run_id:
            for name in self.client.get_run(self.run_id).data.metrics:
                history = self.client.get_metric_history(self.run_id, name)
                self.sent |= {(name, metric.step) for metric in history}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """One row: `epoch`, `step`, and the metrics."""
        step = int(row["step"])
        if self.writer:
            for name, value in row.items():
                if name != "step":
                    self.writer.add_scalar(name, value, step)
        if self.run_id:
            from mlflow.entities import Metric

            new = [name for name in row if name != "step" and (name, step) not in self.sent]
            now_ms = int(time.time() * 1000)
            self.client.log_batch(self.run_id, [Metric(name, row[name], now_ms, step) for name in new])
            self.sent |= {(name, step) for name in new}

    def close(self, status: str, files: Sequence[Any] = ()) -> None:
        """End the MLflow run as FINISHED, FAILED or KILLED, with these files as its artifacts."""
        if self.writer:
            self.writer.close()
        if self.run_id:
            for file in files:
                self.client.log_artifact(self.run_id, str(file))
            self.client.set_terminated(self.run_id, status)


def _open_mlflow_run(client: MlflowClient, uri: str, run: Run, cfg: DictConfig) -> str:
    """The id of the run's MLflow run, made at the first call, with settings, command, folder and git commit."""
    run_id = _earlier_run(client, run, cfg)
    if run_id is None:
        run_id = make_mlflow_run(client, uri, cfg.experiment_name, run.folder)
    if not run.mlflow_run_id.exists():
        run.mlflow_run_id.write_text(run_id + "\n", encoding="utf-8")

    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    missing = [Param(key, str(value)) for key, value in _parameters(cfg) if key not in known]
    client.log_batch(run_id, params=missing)
    return run_id


def _earlier_run(client: MlflowClient, run: Run, cfg: DictConfig) -> str | None:
    """The MLflow run of an earlier start in this folder, running again."""
    run_id = None
    if run.mlflow_run_id.exists():
        run_id = run.mlflow_run_id.read_text(encoding="utf-8").strip()
    elif run.num_starts() > 1 and (experiment := client.get_experiment_by_name(cfg.experiment_name)):
        # killed after MLflow had made its run, before the folder knew
        wanted = f"tags.run_dir = '{run.folder.as_posix()}'"
        for found in client.search_runs([experiment.experiment_id], wanted, max_results=1):
            run_id = str(found.info.run_id)
    if run_id is None:
        return None
    try:
        client.update_run(run_id, status="RUNNING")
        client.set_tag(run_id, "command", command())
        return run_id
    except Exception as error:  # MLflow raises its own kinds for each store
        log.warning("MLflow run %s cannot be continued (%s): a new one is started", run_id, first_line(error))
        run.mlflow_run_id.unlink(missing_ok=True)
        return None


def make_mlflow_run(client: MlflowClient, uri: str, experiment_name: str, folder: Path) -> str:
    """The id of a new MLflow run for this folder, of a run or a sweep, with its command and git commit."""
    with _one_at_a_time(uri):  # two runs that start together make one experiment
        experiment = client.get_experiment_by_name(experiment_name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(experiment_name)
    tags = {"run_dir": folder.as_posix(), "command": command()}
    if git := git_state():
        tags |= {"mlflow.source.git.commit": git["git_commit"], "git.dirty": str(git["git_dirty"])}
    sweep = folder.parent / "mlflow_run_id"
    if sweep.is_file():
        tags["mlflow.parentRunId"] = sweep.read_text(encoding="utf-8").strip()
    return str(client.create_run(experiment_id, run_name=folder.name, tags=tags).info.run_id)


def _parameters(cfg: DictConfig) -> Iterator[tuple[str, Any]]:
    """What decides the result; not where it is recorded, which may hold a password, nor how it was started."""
    return ((key, value) for key, value in flatten(cfg) if key.split(".")[0] not in {"tracking", *HOW_STARTED})


def _one_at_a_time(uri: str) -> AbstractContextManager[Any]:
    """A lock beside a database in a file: of many runs that start together, one makes it."""
    file = _database(uri)
    if file is None:
        return nullcontext()
    from filelock import FileLock

    return FileLock(f"{file}.lock")


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
