"""The two pictures every run leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # without pyplot: no window, no global state


def learning_curve(rows: Sequence[dict[str, float]], file: Path) -> None:
    """Loss and accuracy over the epochs; `rows` as in `history.csv`."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    epochs = [row["epoch"] + 1 for row in rows]
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for stage in ("train", "val"):
            axes.plot(epochs, [row.get(f"{stage}/{metric}", np.nan) for row in rows], marker=".", label=stage)
        axes.set(xlabel="epoch", ylabel=metric)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=120)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int, file: Path) -> None:
    """How often each class (row) was taken for which (column); `labels` and `predicted` are int, N."""
    counts = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(counts, (labels, predicted), 1)
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues")
    for row, column in np.argwhere(counts):
        dark = counts[row, column] > counts.max() / 2
        axes.text(column, row, counts[row, column], ha="center", va="center", color="white" if dark else "black")
    axes.set(
        xlabel="predicted", ylabel="label", xticks=range(num_classes), yticks=range(num_classes),
        title=f"{counts.trace()} of {counts.sum()} right",
    )  # fmt: skip
    figure.savefig(file, dpi=120)
