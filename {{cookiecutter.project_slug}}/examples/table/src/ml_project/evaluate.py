"""Measure a run's best checkpoint on the test split, which no training looks at.

    python -m ml_project.evaluate                       # the newest run
    python -m ml_project.evaluate runs/diabetes/...     # this one

The result goes into the run's folder and into its MLflow run.
"""

from __future__ import annotations

from collections.abc import Mapping

import runengine


def evaluate(run: runengine.Run) -> dict[str, float]:
    """`test/loss`, and in the table's unit `test/mae`, `test/rmse` and `test/r2`, of the run's best checkpoint.

    `test/mae_of_the_mean` is that of who always says the mean of the training rows. Writes `test_metrics.json`,
    `test_predictions.csv`, `predicted_against_true.png` and `residuals.png`.
    """
    import numpy as np
    import pandas as pd
    import torch

    from .plots import predicted_against_true, residuals
    from .prepare import files_of

    _, task, data = runengine.load(run)
    tested = runengine.evaluation_trainer().test(task, data, verbose=False)[0]
    metrics = {name: float(value) for name, value in tested.items()}

    targets_N, answers_N = torch.cat(task.test_targets_B).numpy(), torch.cat(task.test_answers_B).numpy()
    metrics["test/mae_of_the_mean"] = float(np.abs(targets_N - data.target_scale[0]).mean())
    name = data.record["target"]
    places_N = np.load(files_of(data.folder, "test")[-1])
    table = {"row": places_N, "target": targets_N, "predicted": answers_N}
    run.save_table("test_predictions.csv", pd.DataFrame(table))
    run.save_figure("predicted_against_true.png", predicted_against_true(targets_N, answers_N, name))
    run.save_figure("residuals.png", residuals(targets_N, answers_N, name))
    runengine.save_test_metrics(run, metrics)
    return metrics


def look(run: runengine.Run) -> None:
    """The page of `make look`: each row of the test split as the table has it, with the answer."""
    import numpy as np
    import pandas as pd

    from .predict import load
    from .prepare import files_of

    data = runengine.load(run).data
    model = load(str(run.folder))
    rows_NC, targets_N, places_N = (np.load(file) for file in files_of(data.folder, "test"))
    answers_N, name = model.answers(rows_NC), model.data["target"]
    table = {"row": places_N, name: targets_N, f"predicted {name}": answers_N, "error": answers_N - targets_N}
    table["loss"] = table["error"] ** 2
    for column, values_N in zip(model.data["columns"], rows_NC.T, strict=True):
        words = model.data["categories"].get(column)
        table[column] = [words[int(value)] if value >= 0 else "" for value in values_N] if words else values_N
    runengine.write_look(run, pd.DataFrame(table))


def in_words(metrics: Mapping[str, float]) -> str:
    known = f"the mean of the training rows: {metrics['test/mae_of_the_mean']:.6g}"
    return f"test error     {metrics['test/mae']:.6g} on average ({known}), R2 {metrics['test/r2']:.3f}"


if __name__ == "__main__":
    runengine.measure(evaluate, in_words)
