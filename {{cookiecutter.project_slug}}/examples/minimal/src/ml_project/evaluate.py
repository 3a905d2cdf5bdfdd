"""Measure a run's best checkpoint on the test split, which no training looks at.

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


def look(run: runengine.Run) -> None:
    """The page of `make look`: each row of the test split with the answer."""
    import pandas as pd
    import torch

    _, task, data = runengine.load(run)
    features_NF, targets_N = data.split("test").tensors
    with torch.inference_mode():
        answers_N = task(features_NF)
    table = pd.DataFrame(features_NF.numpy()).add_prefix("feature ")
    table["target"], table["predicted"] = targets_N.numpy(), answers_N.numpy()
    table["loss"] = (answers_N - targets_N).square().numpy()
    runengine.write_look(run, table)


if __name__ == "__main__":
    runengine.measure(evaluate, lambda metrics: f"test loss      {metrics['test/loss']:.4f}")
