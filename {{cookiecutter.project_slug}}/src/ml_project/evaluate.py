"""Measure a run's best checkpoint on the test split: the only place that looks at it.

    python -m ml_project.evaluate                     # the newest run
    python -m ml_project.evaluate runs/digits/...     # this one

The result goes into the run's folder and into its MLflow run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os

from .errors import one_sentence
from .messages import quiet_lightning
from .run import Run, find, load_config, program

SUMMARY = "Measure a run's best checkpoint on the test split."


def evaluate(run: Run) -> dict[str, float]:
    """`test/loss` and `test/accuracy` of the run's best checkpoint.

    Writes `test_metrics.json`, `test_predictions.csv` and `confusion_matrix.png`.
    """
    import pytorch_lightning as pl
    import torch
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    from .plots import confusion_matrix
    from .tracking import mlflow_client
    from .train import build_data, build_task, load_weights

    quiet_lightning()
    cfg = load_config(run)
    data, task = build_data(cfg), build_task(cfg)
    load_weights(task, run.best)
    alone = LightningEnvironment()  # also inside a job of Slurm
    trainer = pl.Trainer(accelerator="auto", devices=1, logger=False, enable_progress_bar=False, plugins=[alone])
    metrics = {name: float(value) for name, value in trainer.test(task, data, verbose=False)[0].items()}

    labels, predicted = torch.cat(task.test_labels_B).numpy(), torch.cat(task.test_predicted_B).numpy()
    files = {name: run.folder / name for name in ("test_metrics.json", "test_predictions.csv", "confusion_matrix.png")}
    files["test_metrics.json"].write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    with files["test_predictions.csv"].open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("label", "predicted"), *zip(labels, predicted, strict=True)])
    confusion_matrix(labels, predicted, cfg.data.num_classes, files["confusion_matrix.png"])

    if cfg.tracking.mlflow_uri and run.mlflow_run_id.exists():
        client = mlflow_client(cfg.tracking.mlflow_uri)
        run_id = run.mlflow_run_id.read_text(encoding="utf-8").strip()
        for name, value in metrics.items():
            client.log_metric(run_id, name, value)
        for file_ in files.values():
            client.log_artifact(run_id, str(file_))
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(prog=program("evaluate"), description=SUMMARY)
    parser.add_argument("run", nargs="?", help="the folder of a run; without it the newest")
    run = find(parser.parse_args().run)
    metrics = evaluate(run)
    print(f"test accuracy  {metrics['test/accuracy']:.4f}")
    print(f"run folder     {os.path.relpath(run.folder)}")
    print("see it         make mlflow")


if __name__ == "__main__":
    with one_sentence():
        main()
