"""Measure a run's best checkpoint on the test split, which no training looks at.

    python -m ml_project.evaluate                     # the newest run
    python -m ml_project.evaluate runs/digits/...     # this one

The result goes into the run's folder and into its MLflow run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import runengine

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

WORST = 25  # mistakes that are shown


def evaluate(run: runengine.Run) -> dict[str, float]:
    """`test/loss` and `test/accuracy` of the run's best checkpoint.

    Writes `test_metrics.json`, `test_predictions.csv`, `per_class.csv`, `confusion_matrix.png` and, of pictures,
    `worst_mistakes.png`.
    """
    import pandas as pd
    import torch

    from .data import as_float
    from .plots import confusion_matrix, worst_mistakes

    cfg, task, data = runengine.load(run)
    tested = runengine.evaluation_trainer().test(task, data, verbose=False)[0]
    metrics = {name: float(value) for name, value in tested.items()}

    labels_N, probabilities_NK = torch.cat(task.test_labels_B), torch.cat(task.test_logits_BK).softmax(dim=1)
    probability_N, predicted_N = probabilities_NK.max(dim=1)
    classes = runengine.read_data(run).get("classes") or [str(label) for label in range(cfg.data.num_classes)]
    answers = {"label": labels_N, "predicted": predicted_N, "probability": probability_N}
    run.save_table("test_predictions.csv", pd.DataFrame(answers))
    run.save_table("per_class.csv", per_class(labels_N.numpy(), predicted_N.numpy(), classes))
    run.save_figure("confusion_matrix.png", confusion_matrix(labels_N.numpy(), predicted_N.numpy(), classes))
    if len(cfg.data.input_shape) == 3 and cfg.data.input_shape[0] in (1, 3):  # can be shown
        wrong = torch.nonzero(labels_N != predicted_N).flatten()
        worst = wrong[probability_N[wrong].argsort(descending=True)][:WORST].tolist()
        images_NCHW = as_float(data.split("test").__getitems__(worst)[0])
        titles = [
            f"{classes[labels_N[n]]}, taken for {classes[predicted_N[n]]} ({probability_N[n]:.0%})" for n in worst
        ]
        run.save_figure("worst_mistakes.png", worst_mistakes(images_NCHW.numpy(), titles))
    runengine.save_test_metrics(run, metrics)
    return metrics


def look(run: runengine.Run) -> None:
    """The page of `make look`: each image of the test split with the answer."""
    import pandas as pd
    import torch
    from PIL import Image

    from .data import as_float

    cfg, task, data = runengine.load(run)
    runengine.evaluation_trainer().test(task, data, verbose=False)
    labels_N, logits_NK = torch.cat(task.test_labels_B), torch.cat(task.test_logits_BK)
    probability_N, predicted_N = logits_NK.softmax(dim=1).max(dim=1)
    classes = runengine.read_data(run).get("classes") or [str(label) for label in range(cfg.data.num_classes)]
    table = {
        "label": [classes[label] for label in labels_N],
        "predicted": [classes[label] for label in predicted_N],
        "right": ["yes" if right else "no" for right in labels_N == predicted_N],
        "probability": probability_N.numpy(),
        "loss": torch.nn.functional.cross_entropy(logits_NK, labels_N, reduction="none").numpy(),
    }
    images_NCHW = data.split("test").images_NCHW

    def picture(row: int) -> Image.Image:
        image_HWC = (as_float(images_NCHW[row]) * 255).round().byte().permute(1, 2, 0).numpy()
        return Image.fromarray(image_HWC.squeeze(2) if image_HWC.shape[2] == 1 else image_HWC)

    can_be_shown = len(cfg.data.input_shape) == 3 and cfg.data.input_shape[0] in (1, 3)
    runengine.write_look(run, pd.DataFrame(table), picture if can_be_shown else None)


def per_class(labels_N: np.ndarray, predicted_N: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """For each class: its name, how many images it has, precision, recall and F1; 0 where nothing was taken for it."""
    import pandas as pd
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, images = precision_recall_fscore_support(
        labels_N, predicted_N, labels=range(len(classes)), zero_division=0.0
    )
    return pd.DataFrame({"class": classes, "images": images, "precision": precision, "recall": recall, "f1": f1})


if __name__ == "__main__":
    runengine.measure(evaluate, lambda metrics: f"test accuracy  {metrics['test/accuracy']:.4f}")
