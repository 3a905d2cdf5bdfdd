"""Several seeds of the same settings: what they reach on the test split, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .outcome import Job, print_table, settings, write_csv, write_runs
from .run import Run

METRICS = ("test/accuracy", "val/accuracy")
COLUMNS = ["metric", "mean", "std", "95 % from", "95 % to", "least", "greatest", "seeds"]


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (n - 1), and the 95 % interval of the mean by Student's t.

    The interval says where the mean of many more seeds would lie, not where the next run will; it takes the values
    to be normally distributed, which accuracies close to 1 are not quite. One value has neither deviation nor interval.
    """
    from scipy import stats

    mean, number = statistics.mean(values), len(values)
    std = statistics.stdev(values) if number > 1 else math.nan
    half = float(stats.t.ppf(0.975, number - 1)) * std / math.sqrt(number) if number > 1 else math.nan
    return {
        "mean": mean, "std": std, "95 % from": mean - half, "95 % to": mean + half,
        "least": min(values), "greatest": max(values), "seeds": number,
    }  # fmt: skip


def evaluate_all(folders: Sequence[Path]) -> None:
    """Measure each run on the test split, unless that was done before."""
    from .evaluate import evaluate

    for folder in folders:
        if not (folder / "test_metrics.json").exists():
            metrics = evaluate(Run(folder))
            print(f"run {folder.name}: test/accuracy {metrics['test/accuracy']:.4f}", flush=True)


def tell_seeds(folder: Path, jobs: Sequence[Job]) -> dict[str, float]:
    """Write and print one row for each combination and metric; returns the means, if there is one combination only."""
    rows, _, _ = write_runs(folder, jobs)
    combinations: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}
    for job, row in zip(jobs, rows, strict=True):
        same = tuple((key, value) for key, value in settings(job).items() if key != "seed")
        combinations.setdefault(same, []).append(row)
    table: list[dict[str, Any]] = [
        {**dict(same), "metric": metric, **summarize([row[metric] for row in members if metric in row])}
        for same, members in combinations.items()
        for metric in METRICS
        if any(metric in row for row in members)
    ]
    changing = [key for key in dict.fromkeys(key for same in combinations for key, _ in same)
                if len({dict(same).get(key) for same in combinations}) > 1]  # fmt: skip
    write_csv(folder / "seeds.csv", [*changing, *COLUMNS], table)
    print_table([*changing, *COLUMNS], table)
    print("std: between seeds; 95 %: interval of the mean, by Student's t")
    return {f"{row['metric']}/mean": row["mean"] for row in table} if len(combinations) == 1 else {}
