"""The results of a sweep: `sweep.csv`, a table on the screen, and the command that trains the best run again."""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs.run import Run

ROWS_SHOWN = 20  # the rest is in sweep.csv
COLUMNS_SHOWN = 4  # metrics; all of them are in sweep.csv


NO_METRICS = {"epoch", "mlflow_run_id", "run", "run_dir", "seconds", "state", "step"}


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its folder, and what is typed for it."""

    folder: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def state(self) -> str:
        run = Run(self.folder)
        if run.metrics.exists():
            return "pruned" if run.pruned.exists() else "finished"
        return "failed" if run.error.exists() else "unfinished"

    @property
    def error(self) -> str:
        """Why it failed, in one sentence."""
        file = Run(self.folder).error
        return file.read_text(encoding="utf-8").splitlines()[0] if file.exists() else "it was stopped or killed."

    @property
    def command(self) -> str:
        """What trains the same again, in a folder of its own."""
        return again(Run(self.folder).module(), self.overrides)


def again(module: str, overrides: Sequence[str]) -> str:
    """The command that trains with these settings."""
    return shlex.join(["python", "-m", module, *overrides])


@dataclass(frozen=True)
class Ranking:
    """By this metric in the epoch of the best checkpoint; `mode` is min or max."""

    metric: str | None
    mode: str

    def key(self, row: dict[str, Any]) -> float:
        """Least is best; what has no number comes last."""
        value = float(row.get(str(self.metric), math.nan))
        if math.isnan(value):
            return math.inf
        return value if self.mode == "min" else -value


def report(folder: Path, jobs: Sequence[Job], ranking: Ranking) -> dict[str, float]:
    """Write and print the table of the runs, the best first.

    Returns:
        The best value, for MLflow; empty when no run has one.
    """
    rows, changing, metrics = write_runs(folder, jobs)
    ranked = sorted(zip(rows, jobs, strict=True), key=lambda pair: ranking.key(pair[0]))
    columns = shown(metrics, ranking.metric)
    table = [{**row, "seconds": f"{row.get('seconds', math.nan):.1f}", "": ""} for row, _ in ranked[:ROWS_SHOWN]]
    if not ranked:
        return {}
    row, job = ranked[0]
    found = not math.isinf(ranking.key(row))
    if found:
        table[0][""] = "best"
    print_table(["run", *(["state"] if {row["state"] for row in rows} != {"finished"} else []), *changing, *columns,
                 "seconds", ""], table)  # fmt: skip
    if len(rows) > ROWS_SHOWN:
        print(f"... and {len(rows) - ROWS_SHOWN} more in {folder / 'sweep.csv'}")
    if not found:
        return {}
    print(f"train the best again: {job.command}")
    if Run(job.folder).test_module():
        print(f"measure the best:     {Run(job.folder).test_command()}")
    return {str(ranking.metric): row[str(ranking.metric)]}


def shown(metrics: Sequence[str], monitored: str | None) -> list[str]:
    """The monitored metric first, then those of the same stage, such as `val/`; no more than fit a terminal."""
    stage = str(monitored).partition("/")[0]
    same = [name for name in metrics if name != monitored and name.partition("/")[0] == stage]
    return [*([str(monitored)] if monitored in metrics else []), *same][:COLUMNS_SHOWN]


def write_runs(folder: Path, jobs: Sequence[Job]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Write `sweep.csv`; returns its rows, the settings in which the runs differ, and the metrics they have."""
    changing = differing(jobs)
    rows = [read(job) | {key: settings(job).get(key, "") for key in changing} for job in jobs]
    metrics = sorted({key for row in rows for key in row} - NO_METRICS - set(changing))
    write_csv(folder / "sweep.csv", ["run", "state", *changing, *metrics, "seconds", "run_dir"], rows)
    return rows, changing, metrics


def read(job: Job) -> dict[str, Any]:
    """What the run's folder says: its state, the metrics of its best epoch, the seconds it took."""
    row: dict[str, Any] = {"run": job.name, "state": job.state, "run_dir": job.folder.as_posix()}
    run = Run(job.folder)
    for file in (run.metrics, run.test_metrics):
        row |= read_metrics(file)
    if (job.folder / "seconds").exists():
        row["seconds"] = float((job.folder / "seconds").read_text(encoding="utf-8"))
    return row


def read_metrics(file: Path) -> dict[str, float]:
    """The metrics in a file of JSON; none where there is no file."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {key: value for key, value in content.items() if key not in NO_METRICS}


def settings(job: Job) -> dict[str, str]:
    """`optimizer.lr=0.1` -> {"optimizer.lr": "0.1"}."""
    return dict(override.split("=", 1) for override in job.overrides if "=" in override)


def differing(jobs: Sequence[Job]) -> list[str]:
    """The settings in which the runs differ."""
    typed = [settings(job) for job in jobs]
    keys = dict.fromkeys(key for each in typed for key in each)
    return [key for key in keys if len({each.get(key) for each in typed}) > 1]


def write_csv(file: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        table = csv.DictWriter(opened, fieldnames=columns, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def print_table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    cells = [list(columns), *([_short(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _short(value: Any) -> str:
    """Four digits are enough to look at; the files have all of them."""
    if isinstance(value, float):
        return f"{value:.4f}"
    try:
        return f"{float(value):.4g}" if len(str(value)) > 8 else str(value)
    except ValueError:
        return str(value)
