"""Measure a run's best checkpoint on the test split: the only place that looks at it.

    python -m ml_project.evaluate                     # the newest run
    python -m ml_project.evaluate runs/digits/...     # this one

The result goes into the run's folder and into its MLflow run.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import mirror, record, store
from .errors import one_sentence
from .messages import quiet_lightning
from .run import Run, find, load_config, program, write_whole
from .snapshot import read_data

if TYPE_CHECKING:
    import numpy as np

WORST = 25  # mistakes that are shown
SUMMARY = "Measure a run's best checkpoint on the test split."


def evaluate(run: Run) -> dict[str, float]:
    """`test/loss` and `test/accuracy` of the run's best checkpoint.

    Writes `test_metrics.json`, `test_predictions.csv`, `per_class.csv`, `confusion_matrix.png` and, of pictures,
    `worst_mistakes.png`.
    """
    import pytorch_lightning as pl
    import torch
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    from .data import as_float
    from .plots import confusion_matrix, worst_mistakes
    from .train import build_data, build_task, load_weights

    quiet_lightning()
    cfg = load_config(run)
    data, task = build_data(cfg), build_task(cfg)
    load_weights(task, run.best)
    alone = LightningEnvironment()  # also inside a job of Slurm
    trainer = pl.Trainer(accelerator="auto", devices=1, logger=False, enable_progress_bar=False, plugins=[alone])
    metrics = {name: float(value) for name, value in trainer.test(task, data, verbose=False)[0].items()}

    labels, probabilities_NK = torch.cat(task.test_labels_B), torch.cat(task.test_logits_BK).softmax(dim=1)
    probability, predicted = probabilities_NK.max(dim=1)
    classes = read_data(run.folder).get("classes") or [str(label) for label in range(cfg.data.num_classes)]
    write_whole(run.folder / "test_metrics.json", json.dumps(metrics, indent=2) + "\n")
    answers = list(zip(labels.tolist(), predicted.tolist(), probability.tolist(), strict=True))
    _write_table(run.folder / "test_predictions.csv", ("label", "predicted", "probability"), answers)
    columns = ("class", "images", "precision", "recall", "f1")
    _write_table(run.folder / "per_class.csv", columns, per_class(labels.numpy(), predicted.numpy(), classes))
    confusion_matrix(labels.numpy(), predicted.numpy(), classes, run.folder / "confusion_matrix.png")
    channels, height, _ = cfg.data.image_shape
    if channels in (1, 3) and height > 1:  # a row of a table is no picture
        wrong = torch.nonzero(labels != predicted).flatten()
        worst = wrong[probability[wrong].argsort(descending=True)][:WORST].tolist()
        images_NCHW = as_float(data.split("test").__getitems__(worst)[0])
        titles = [f"{classes[labels[n]]}, taken for {classes[predicted[n]]} ({probability[n]:.0%})" for n in worst]
        worst_mistakes(images_NCHW.numpy(), titles, run.folder / "worst_mistakes.png")

    step = int(torch.load(run.best, map_location="cpu", weights_only=True)["global_step"])
    _track(run, step, metrics, cfg.tracking.mlflow_uri)
    return metrics


def per_class(labels_N: np.ndarray, predicted_N: np.ndarray, classes: Sequence[str]) -> list[tuple[Any, ...]]:
    """For each class: its name, how many images it has, precision, recall and F1; 0 where nothing was taken for it."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, images = precision_recall_fscore_support(
        labels_N, predicted_N, labels=range(len(classes)), zero_division=0.0
    )
    return list(zip(classes, images.tolist(), precision.tolist(), recall.tolist(), f1.tolist(), strict=True))


def _write_table(file: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_whole(file, text.getvalue())


def _track(run: Run, step: int, metrics: dict[str, float], uri: str | None) -> None:
    """Into the run's rows, unless they are there, and to MLflow; if that fails, `make sync` sends it."""
    known = {
        (name, row["step"], value) for row in record.read_rows(run.folder) for name, value in row["metrics"].items()
    }
    new = {name: value for name, value in metrics.items() if (name, step, value) not in known}
    if new:
        record.add_row(run.folder, step, new, int(time.time() * 1000))
    if not (uri and run.finished()):
        return
    mirror.note(run.folder, "FINISHED")
    try:
        mirror.send_all(run.folder, uri)
    except Exception as error:
        print(f"warning: MLflow did not get this ({store.why(error)}). Send it later: make sync", file=sys.stderr)


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
