"""Measure a run's best checkpoint on the test split.

python -m gan.evaluate runs/...
"""

from __future__ import annotations

import sys

import runengine


def evaluate(run: runengine.Run) -> dict[str, float]:
    _, task, data = runengine.load(run)
    metrics = dict(runengine.evaluation_trainer().test(task, data, verbose=False)[0])
    runengine.save_test_metrics(run, metrics)
    return metrics


if __name__ == "__main__":
    with runengine.friendly_errors():
        print(evaluate(runengine.find(*sys.argv[1:])))
