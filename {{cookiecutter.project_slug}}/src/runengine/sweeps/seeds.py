"""Several seeds of the same settings: what they reach on the test split, and how sure that is."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Sequence
from typing import Any

from ..runs.run import Run
from .results import Job, Ranking, again, differing, metrics_in, print_table, shown, write_csv, write_runs

COLUMNS = ["metric", "mean", "std", "95 % from", "95 % to", "least", "greatest", "seeds"]


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (n - 1), and the 95 % interval of the mean by Student's t.

    The interval says where the mean of many more seeds would lie, not where the next run will; it takes the values
    to be normally distributed, which those close to a bound are not quite. One value has no deviation and no interval.
    """
    from scipy import stats

    mean, number = statistics.mean(values), len(values)
    std = statistics.stdev(values) if number > 1 else math.nan
    half = float(stats.t.ppf(0.975, number - 1)) * std / math.sqrt(number) if number > 1 else math.nan
    return {
        "mean": mean, "std": std, "95 % from": mean - half, "95 % to": mean + half,
        "least": min(values), "greatest": max(values), "seeds": number,
    }  # fmt: skip


def evaluate_all(jobs: Sequence[Job]) -> None:
    """Measure each run on the test split by the owner's `evaluate(run)`, unless that was done before."""
    for job in jobs:
        if not job.test_metrics.exists():
            module = job.test_module()
            if module is None:
                print("the package has no evaluate.py: what the trainings have logged is summed up, no test split")
                return
            evaluate = importlib.import_module(module).evaluate
            metrics: dict[str, float] = evaluate(job)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            print(f"run {job.name}: {shown}", flush=True)


def report_trials(sweep: Run, trials: Sequence[Sequence[Job]], ranking: Ranking) -> dict[str, float]:
    """Write and print one row for each trial of a search, the best mean first; one that lacks a run has none.

    Returns the best mean."""
    metric = str(ranking.metric)
    rows, changing, _ = write_runs(sweep, [job for trial in trials for job in trial])
    of_run = {row["run"]: row for row in rows}
    table: list[dict[str, Any]] = []
    for number, trial in enumerate(trials):
        values = [of_run[job.name][metric] for job in trial if metric in of_run[job.name]]
        known = summarize(values) if len(values) == len(trial) else {"seeds": len(values)}
        table.append({"trial": number, **trial[0].settings(), "metric": metric, **known, "": ""})
    table.sort(key=lambda row: ranking.key({metric: row.get("mean", math.nan)}))  # the earlier of two equal ones first
    changing = [key for key in changing if key != "seed"]
    write_csv(sweep.seeds_table, ["trial", *changing, *COLUMNS], table)
    if not table or math.isinf(ranking.key({metric: table[0].get("mean", math.nan)})):
        return {}
    table[0][""] = "best"
    print_table(["trial", *changing, "metric", "mean", "std", "seeds", ""], table, sweep.seeds_table)
    best = trials[table[0]["trial"]]
    typed = [*best[0].overrides[:-1], f"seeds={len(best)}"]  # in place of its seed
    print(f"train the best again, and measure it on the test split: {again(best[0].module(), typed)}")
    return {f"{metric}/mean": table[0]["mean"]}


def report_seeds(sweep: Run, jobs: Sequence[Job], monitored: str | None) -> dict[str, float]:
    """Write and print one row for each combination and metric: those of the test split, then what is monitored.

    Returns the means, if there is one combination only."""
    rows, _, metrics = write_runs(sweep, jobs)
    of_test = {name for job in jobs for name in metrics_in(job.test_metrics)}
    metrics = [*sorted(of_test), *(name for name in shown(metrics, monitored) if name not in of_test)]
    combinations: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}
    for job, row in zip(jobs, rows, strict=True):
        same = tuple((key, value) for key, value in job.settings().items() if key != "seed")
        combinations.setdefault(same, []).append(row)
    table: list[dict[str, Any]] = [
        {**dict(same), "metric": metric, **summarize([row[metric] for row in members if metric in row])}
        for same, members in combinations.items()
        for metric in metrics
        if any(metric in row for row in members)
    ]
    changing = differing([dict(same) for same in combinations])
    write_csv(sweep.seeds_table, [*changing, *COLUMNS], table)
    print_table([*changing, *COLUMNS], table)
    print("std: between seeds; 95 %: interval of the mean, by Student's t")
    return {f"{row['metric']}/mean": row["mean"] for row in table} if len(combinations) == 1 else {}
