"""The results of a sweep: `sweep.csv`, a table on the screen, and the command that trains the best run again."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs.run import Run, read_numbers

if TYPE_CHECKING:
    import pandas as pd

ROWS_SHOWN = 20  # of a table
COLUMNS_SHOWN = 4  # metrics; all of them are in sweep.csv

NO_METRICS = {"epoch", "run", "run_dir", "seconds", "state", "step"}  # other columns, and what places a metric


@dataclass(unsafe_hash=True)
class Job(Run):
    """One run of a sweep, and what is typed for it."""

    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def state(self) -> str:
        if self.metrics.exists():
            return "pruned" if self.pruned.exists() else "finished"
        return "failed" if self.error.exists() else "unfinished"

    @property
    def reason(self) -> str:
        """Why it failed, in one sentence."""
        if not self.error.exists():
            return "it was stopped or killed."
        return self.error.read_text(encoding="utf-8").splitlines()[0]

    def settings(self) -> dict[str, str]:
        """`optimizer.lr=0.1` -> {"optimizer.lr": "0.1"}."""
        return dict(override.split("=", 1) for override in self.overrides if "=" in override)

    def row(self) -> dict[str, Any]:
        """What `sweep.csv` says of it, besides its settings."""
        row = {"run": self.name, "state": self.state, "run_dir": self.folder.as_posix()}
        seconds = {"seconds": float(self.seconds.read_text(encoding="utf-8"))} if self.seconds.exists() else {}
        return {**row, **metrics_in(self.metrics), **metrics_in(self.test_metrics), **seconds}


def metrics_in(file: Path) -> dict[str, float]:
    """Of `metrics.json` or `test_metrics.json`."""
    return {name: value for name, value in read_numbers(file).items() if name not in NO_METRICS}


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


def report(sweep: Run, jobs: Sequence[Job], ranking: Ranking) -> dict[str, float]:
    """Write and print the table of the runs, the best first.

    Returns:
        The best value, for MLflow; empty when no run has one.
    """
    rows, changing, metrics = write_runs(sweep, jobs)
    ranked = sorted(zip(rows, jobs, strict=True), key=lambda pair: ranking.key(pair[0]))
    columns = shown(metrics, ranking.metric)
    table = [{**row, "seconds": f"{row.get('seconds', math.nan):.1f}", "": ""} for row, _ in ranked]
    if not ranked:
        return {}
    row, job = ranked[0]
    found = not math.isinf(ranking.key(row))
    if found:
        table[0][""] = "best"
    print_table(["run", *(["state"] if {row["state"] for row in rows} != {"finished"} else []), *changing, *columns,
                 "seconds", ""], table, sweep.sweep_table)  # fmt: skip
    if not found:
        return {}
    print(f"train the best again: {again(job.module(), job.overrides)}")
    if job.test_module():
        print(f"measure the best:     {job.test_command()}")
    return {str(ranking.metric): row[str(ranking.metric)]}


def shown(metrics: Sequence[str], monitored: str | None) -> list[str]:
    """The monitored metric first, then those of the same stage, such as `val/`; no more than fit a terminal."""
    stage = str(monitored).partition("/")[0]
    same = [name for name in metrics if name != monitored and name.partition("/")[0] == stage]
    return [*([str(monitored)] if monitored in metrics else []), *same][:COLUMNS_SHOWN]


def write_runs(sweep: Run, jobs: Sequence[Job]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Write `sweep.csv`; returns its rows, the settings in which the runs differ, and the metrics they have."""
    typed = [job.settings() for job in jobs]
    changing = differing(typed)
    rows = [job.row() | {key: each.get(key, "") for key in changing} for job, each in zip(jobs, typed, strict=True)]
    metrics = sorted({key for row in rows for key in row} - NO_METRICS - set(changing))
    write_csv(sweep.sweep_table, ["run", "state", *changing, *metrics, "seconds", "run_dir"], rows)
    return rows, changing, metrics


def differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The names of the settings in which these differ."""
    keys = dict.fromkeys(key for each in settings for key in each)
    return [key for key in keys if len({each.get(key) for each in settings}) > 1]


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """These columns of the rows; empty where a row has nothing."""
    import pandas as pd

    cells = [[row.get(column, "") for column in columns] for row in rows]
    return pd.DataFrame(cells, columns=list(columns), dtype=object)


def write_csv(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    table(columns, rows).to_csv(file, index=False, na_rep="nan")


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], file: Path | None = None) -> None:
    """All rows; of many the first, if a file has the others. Nothing without rows."""
    first = rows[:ROWS_SHOWN] if file else rows
    if first:
        shown = table(columns, first).map(lambda cell: f" {_short(cell)}").rename(columns=" {}".format)
        print(shown.to_string(index=False))  # the blanks set the columns further apart than pandas does
    if len(first) < len(rows):
        print(f"... and {len(rows) - len(first)} more in {file}")


def _short(value: Any) -> str:
    """Four digits are enough to look at; the files have all of them."""
    if isinstance(value, float):
        return f"{value:.4f}"
    try:
        return f"{float(value):.4g}" if len(str(value)) > 8 else str(value)
    except ValueError:
        return str(value)
