"""MLflow kept equal to what the folder of a run, or of a sweep, holds.

The folder has everything first, so nothing is lost when a server fails. What MLflow has is asked, the rest is sent:
that can be repeated at any time, and nothing is there twice.

    metrics.jsonl      each row of metrics, with the time it was measured at
    mlflow_run_id      written as soon as MLflow has given one
    mlflow_sent.json   which files MLflow has
    unsent.json        there while MLflow has not got everything: `make sync` looks for it
"""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs.run import Run
from ..settings.files import atomic_write, parse_lines, read_json
from .local_store import link, local_artifacts, remove_parts
from .mlflow_client import experiment_id, is_absent, mlflow_client, without_password
from .payload import CHECKPOINTS, LONGEST_TAG, Record, dataset_of, files_of, last_ms, read_record, registered_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_A_REQUEST = 1000  # MLflow refuses more
PARAMS_A_REQUEST = 100
FILES_AT_ONCE = 8
LONGEST_PARAM = 6000  # letters; config.yaml has it in full

log = logging.getLogger(__name__)


class MlflowSync:
    """Makes the MLflow run of a folder equal to the folder; each method may fail, and be called again.

    Args:
        run: or a sweep.
        uri: of the store.
        new: False if MLflow may know this folder already.
    """

    def __init__(self, run: Run, uri: str, *, new: bool = False) -> None:
        self.run = Run(run.folder.absolute())
        self.uri = uri
        self.run_id = ""
        self.answered_at = 0.0  # time.monotonic() of the last answer, for the one who waits
        self._client: Any = None
        self._maybe_made = not new
        self._known: set[tuple[str, int]] | None = set() if new else None
        self._offset = 0
        self._pending: list[dict[str, Any]] = []

    def ask_again(self) -> None:
        """After a failure: what of the last requests has arrived is not known."""
        self._known = None
        self._maybe_made = True

    def update(self, status: str = "RUNNING") -> None:
        """The run, its settings and all rows of metrics that are in the folder now."""
        if self._client is None:
            self._client = mlflow_client(self.uri)
        if not self.run_id:
            self._open(self._client, status)
        self._send_rows(self._client)

    def finish(self, status: str) -> None:
        """Everything, with files, model and status: FINISHED, FAILED or KILLED."""
        self.update(status)
        if status != "KILLED":  # that one is to be resumed: soon, and perhaps with little time to end
            self._send_files(self._client)
            record = read_record(self.run)
            if record.register and (self.run.model / "MLmodel").is_file() and status == "FINISHED":
                register(self._client, self.run_id, registered_name(record.experiment))
        self._client.set_terminated(self.run_id, status, last_ms(self.run))
        self._answered()
        self.run.unsent.unlink(missing_ok=True)

    def _open(self, client: MlflowClient, status: str) -> None:
        """Find the MLflow run of this folder, or make it."""
        from mlflow.entities import Param, RunTag

        record = read_record(self.run)
        run_id = self._stored_id(client) or (self._find(client, record) if self._maybe_made else None)
        made = run_id is None
        if run_id is None:
            self._maybe_made = True  # from here on, until an answer has come
            experiment = experiment_id(client, self.uri, record.experiment)
            tags = {**record.tags, "run_key": record.key}
            run_id = client.create_run(experiment, record.started_ms, tags, record.name).info.run_id
            self._known = set()
        atomic_write(self.run.mlflow_run_id, run_id + "\n")
        known = {} if made else client.get_run(run_id).data.params
        params = [Param(key, value[:LONGEST_PARAM]) for key, value in record.params.items() if key not in known]
        tags_of_now = [RunTag(key, value) for key, value in record.tags.items()] if not made else []
        for start in range(0, max(len(params), 1), PARAMS_A_REQUEST):
            client.log_batch(run_id, params=params[start : start + PARAMS_A_REQUEST], tags=tags_of_now)
            self._answered()
        if record.dataset:
            client.log_inputs(run_id, [dataset_of(record.dataset)])
        if not made:
            client.update_run(run_id, status=status)
        self._answered()
        self.run_id = run_id

    def _stored_id(self, client: MlflowClient) -> str | None:
        """The id in the folder, if this store knows it."""
        from mlflow.exceptions import MlflowException

        run_id = self.run.mlflow_id()
        if run_id is None:
            return None
        try:
            deleted = client.get_run(run_id).info.lifecycle_stage != "active"
        except MlflowException as error:
            if not is_absent(error):
                raise
            deleted = True
        if not deleted:
            return run_id
        log.warning("MLflow at %s does not know the run %s: a new one is made", without_password(self.uri), run_id)
        for outdated in (self.run.mlflow_run_id, self.run.mlflow_sent):
            outdated.unlink(missing_ok=True)
        self._known = None
        return None

    def _find(self, client: MlflowClient, record: Record) -> str | None:
        """The run that was made for this folder by a request whose answer nobody has read."""
        experiment = client.get_experiment_by_name(record.experiment)
        if experiment is None:
            return None
        found = client.search_runs([experiment.experiment_id], f"tags.run_key = '{record.key}'")
        ids = sorted((run.info.start_time, run.info.run_id) for run in found)
        for _, run_id in ids[1:]:  # a server that was frozen worked off two requests at last
            client.delete_run(run_id)
        return str(ids[0][1]) if ids else None

    def _send_rows(self, client: MlflowClient) -> None:
        from mlflow.entities import Metric

        self._pending += self._new_rows()
        if self._pending and self._known is None:
            self._known = self._ask(client, {name for row in self._pending for name in row["metrics"]})
        known = self._known or set()
        metrics = {
            (name, row["step"]): Metric(name, value, row["time_ms"], row["step"])
            for row in self._pending
            for name, value in row["metrics"].items()
            if (name, row["step"]) not in known
        }
        for start in range(0, len(metrics), METRICS_A_REQUEST):
            keys = list(metrics)[start : start + METRICS_A_REQUEST]
            # the same metric with the same time is one metric for MLflow, if it has arrived after all
            client.log_batch(self.run_id, [metrics[key] for key in keys])
            known |= set(keys)
            self._answered()
        self._pending = []

    def _new_rows(self) -> list[dict[str, Any]]:
        """The rows that were added since the last time; a line without its end is still being written."""
        if not self.run.metric_rows.exists():
            return []
        with self.run.metric_rows.open("rb") as rows:
            rows.seek(self._offset)
            lines = [line for line in rows if line.endswith(b"\n")]
        self._offset += sum(map(len, lines))
        return parse_lines(self.run.metric_rows, lines)

    def _ask(self, client: MlflowClient, names: set[str]) -> set[tuple[str, int]]:
        """(metric, step) of all that MLflow has of these."""
        there = names & client.get_run(self.run_id).data.metrics.keys()
        known = set()
        for name in sorted(there):
            known |= {(name, metric.step) for metric in client.get_metric_history(self.run_id, name)}
            self._answered()
        return known

    def _send_files(self, client: MlflowClient) -> None:
        """Those that are new or have changed; several at a time, as each waits for an answer."""
        sent: dict[str, list[int]] = read_json(self.run.mlflow_sent)
        states = {name: (self.run.folder / name).stat() for name in files_of(self.run)}
        versions = {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}
        todo = [name for name, version in versions.items() if sent.get(name) != version]
        artifacts = local_artifacts(client, self.run_id)
        errors: list[Exception] = []
        noting = threading.Lock()

        def work() -> None:
            while todo and not errors:
                with suppress(IndexError):  # another was quicker
                    name = todo.pop()
                    try:
                        file, folder = self.run.folder / name, Path(name).parent.as_posix()
                        linked = artifacts and name in CHECKPOINTS["all"] and link(file, artifacts / name)
                        if not linked:
                            client.log_artifact(self.run_id, str(file), None if folder == "." else folder)
                    except Exception as error:
                        errors.append(error)
                        return
                    with noting:
                        sent[name] = versions[name]
                        atomic_write(self.run.mlflow_sent, json.dumps(sent) + "\n")
                        self._answered()

        # no pool: Python waits at its end for those of a pool, also for one that a frozen server does not answer
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(FILES_AT_ONCE, len(todo)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        if artifacts:
            remove_parts(artifacts)
        if "model/MLmodel" in versions:
            self._name_model(client)

    def _name_model(self, client: MlflowClient) -> None:
        """What makes MLflow's pages show the files in `model/` as a model."""
        from mlflow.models import Model

        model = Model.load(str(self.run.model))
        model.artifact_path, model.run_id = "model", self.run_id
        text = json.dumps([json.loads(model.to_json())])
        if len(text) <= LONGEST_TAG:
            client.set_tag(self.run_id, "mlflow.log-model.history", text)

    def _answered(self) -> None:
        self.answered_at = time.monotonic()


def register(client: MlflowClient, run_id: str, name: str) -> int:
    """The version of the registered model `name` that this run's model is; made at the first call."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        return int(version.version)
    artifacts = client.get_run(run_id).info.artifact_uri
    return int(client.create_model_version(name, f"{artifacts}/model", run_id).version)
