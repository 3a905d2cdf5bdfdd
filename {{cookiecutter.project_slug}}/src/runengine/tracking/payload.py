"""What the folder of a run, or of a sweep, has to say: its settings, its origin, its rows of metrics, its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..runs.provenance import read_data
from ..runs.run import Run, load_config
from ..settings import project
from ..settings.config import compose, deciding, flatten
from ..settings.files import parse_lines

# what the owner leaves in the folder of a run goes along, whatever its name
RUN_FILES = (
    "*.yaml", "*.json", "*.csv", "*.parquet", "*.txt", "*.log", "*.diff", "*.md", "*.html", "*.png", "*.svg", "*.pdf",
    "model/**/*", "exports/*.onnx", "exports/*.pt2",
)  # fmt: skip
CHECKPOINTS = {"none": (), "best": (Run.best.name,), "all": (Run.best.name, Run.last.name)}  # by tracking.checkpoints
# these say what MLflow has, or what it gets as metrics
NOT_SENT = {file.name for file in (Run.metrics, Run.mlflow_sent, Run.about, Run.trial, Run.unsent)}
SWEEP_FILES = (Run.sweep.name, Run.sweep_table.name, Run.seeds_table.name)
LONGEST_TAG = 5000  # letters


class NotYet(Exception):
    """A run is sent after the sweep that it belongs to."""


@dataclass(frozen=True)
class Record:
    """What MLflow shall know of a folder, besides rows and files."""

    uri: str | None
    experiment: str
    name: str
    key: str  # in a tag: by it a run is found whose id was not yet written down when the process died
    started_ms: int
    tags: dict[str, str]
    params: dict[str, str]
    dataset: dict[str, Any] = field(default_factory=dict)
    register: bool = False


def registered_name(experiment: str) -> str:
    """Of a model in the registry: each experiment has its own, so two tasks of one project do not meet."""
    return f"{project.current().package}-{experiment}"


def read_record(run: Run) -> Record:
    return _record_of_sweep(run) if run.is_sweep() else _record_of_run(run)


def files_of(run: Run) -> Iterator[str]:
    """The files that go into MLflow, as paths within the folder."""
    checkpoints = () if run.is_sweep() else CHECKPOINTS[load_config(run).tracking.get("checkpoints", "best")]
    for pattern in SWEEP_FILES if run.is_sweep() else (*RUN_FILES, *checkpoints):
        names = sorted(file.relative_to(run.folder).as_posix() for file in run.folder.glob(pattern) if file.is_file())
        yield from (name for name in names if name not in NOT_SENT and not name.startswith("."))


def add_row(run: Run, step: int, metrics: dict[str, float], now_ms: int) -> None:
    """Append one row to `metrics.jsonl`, in one piece."""
    line = json.dumps({"time_ms": now_ms, "step": step, "metrics": metrics}) + "\n"
    with run.metric_rows.open("a", encoding="utf-8") as file:
        file.write(line)


def read_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`."""
    if not run.metric_rows.exists():
        return []
    with run.metric_rows.open("rb") as rows:
        return parse_lines(run.metric_rows, (line for line in rows if line.endswith(b"\n")))


def _record_of_run(run: Run) -> Record:
    cfg, last, sweep = load_config(run), _start(run, -1), Run(run.folder.parent)
    tags = {"run_dir": _shown(run), **_tags(last)}
    if sweep.is_sweep():
        if (parent := sweep.mlflow_id()) is None:
            raise NotYet("the sweep that it belongs to is not there yet")
        tags["mlflow.parentRunId"] = parent
    return Record(
        uri=cfg.tracking.mlflow_uri,
        experiment=cfg.experiment_name,
        name=last.get("dvc_experiment") or run.folder.name,
        key=_key(run),
        started_ms=_ms(_start(run, 0)["started_at"]),
        tags=tags | ({"tags": ",".join(map(str, cfg.tags))} if cfg.get("tags") else {}),
        params={key: str(value) for key, value in flatten(OmegaConf.create(deciding(cfg)))},
        dataset=read_data(run),
        register=bool(cfg.get("register")),
    )


def _record_of_sweep(sweep: Run) -> Record:
    stored: Any = OmegaConf.load(sweep.sweep)
    first = compose(stored.get("script", project.current().script), stored.first)
    return Record(
        uri=first.tracking.mlflow_uri,
        experiment=first.experiment_name,
        name=sweep.folder.name,
        key=_key(sweep),
        started_ms=_ms(_start(sweep, 0)["started_at"]),
        tags={"run_dir": _shown(sweep), **_tags(_start(sweep, -1))},
        params={str(key): str(value) for key, value in stored.params.items()},
    )


def _start(run: Run, which: int) -> dict[str, Any]:
    """The first or the last start; where that is not known any more, the lock's file has its time."""
    made_at = datetime.fromtimestamp(run.lock.stat().st_ctime).astimezone() if run.lock.exists() else datetime.now()
    unknown = {"started_at": made_at.isoformat(), "command": "unknown"}
    return {**unknown, **(run.read_starts() or [{}])[which]}


def _tags(start: dict[str, Any]) -> dict[str, str]:
    tags = {
        "command": start["command"],
        "mlflow.user": start.get("user"),
        "mlflow.source.name": start["command"].split()[2] if start["command"].startswith("python -m") else "",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": start.get("git_commit"),
        "git.dirty": start.get("git_dirty"),
        "host": start.get("host"),
        "slurm.job": start.get("slurm_job"),
        "dvc.experiment": start.get("dvc_experiment"),
    }
    return {key: str(value)[:LONGEST_TAG] for key, value in tags.items() if value not in (None, "")}


def _key(run: Run) -> str:
    """Of the first start of what is in this folder: no other start has its time, host and process."""
    with run.starts.open("rb") as starts:
        return hashlib.sha256(starts.readline()).hexdigest()[:32]


def _shown(run: Run) -> str:
    """As it is typed: from the project's folder on, where it is there."""
    with suppress(ValueError):
        return run.folder.relative_to(Path.cwd()).as_posix()
    return run.folder.as_posix()


def _ms(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)


def last_ms(run: Run) -> int:
    """When the run ended, also if it is sent days later; a clock that was set back lets no run end before its start."""
    rows = read_rows(run)
    ended = int(rows[-1]["time_ms"]) if rows else _ms(_start(run, -1)["started_at"])
    return max(ended, _ms(_start(run, 0)["started_at"]))


def dataset_of(data: dict[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=data["folder"],
        digest=_version(data)[:36],  # as many letters as MLflow takes
        source_type="local",
        source=json.dumps({"uri": data["folder"]}),
        profile=json.dumps({"rows": data.get("rows"), "version": _version(data)}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _version(data: dict[str, Any]) -> str:
    return str(data.get("data_dvc_md5") or data.get("data_split_sha256"))
