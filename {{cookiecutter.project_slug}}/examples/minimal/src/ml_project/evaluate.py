"""Measure a run's best checkpoint on the test split: the only place that looks at it.

python -m ml_project.evaluate                     # the newest run
python -m ml_project.evaluate runs/points/...     # this one
"""

from __future__ import annotations

import runengine


def evaluate(run: runengine.Run) -> dict[str, float]:
    """`test/loss` of the run's best checkpoint; writes `test_metrics.json`."""
    _, task, data = runengine.load(run)
    metrics = dict(runengine.evaluation_trainer().test(task, data, verbose=False)[0])
    runengine.save_test_metrics(run, metrics)
    return metrics


if __name__ == "__main__":
    runengine.measure(evaluate, lambda metrics: f"test loss      {metrics['test/loss']:.4f}")
