"""The figures a run leaves behind."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure  # without pyplot: no window, no global state


def learning_curve(rows: Sequence[dict[str, float]]) -> Figure:
    """Loss and accuracy over the epochs; `rows` are those of `history.csv`."""
    figure = Figure(figsize=(9, 3.5))
    figure.subplots_adjust(0.1, 0.15, 0.98, 0.94, wspace=0.25)  # layout="constrained" takes twice as long
    epochs = [row["epoch"] + 1 for row in rows]
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for stage in ("train", "val"):
            axes.plot(epochs, [row.get(f"{stage}/{metric}", np.nan) for row in rows], marker=".", label=stage)
        axes.set(xlabel="epoch", ylabel=metric)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Figure:
    """How often each class (row) was taken for which (column); `labels` and `predicted` are int, N."""
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(counts, (labels, predicted), 1)
    size = max(6.0, 0.35 * len(classes))
    figure = Figure(figsize=(size, size - 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues")
    for row, column in np.argwhere(counts):
        dark = counts[row, column] > counts.max() / 2
        axes.text(column, row, counts[row, column], ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="label", title=f"{counts.trace()} of {counts.sum()} right")
    return figure


def worst_mistakes(images_NCHW: np.ndarray, titles: Sequence[str]) -> Figure:
    """The images in a grid; values in 0..1, one colour channel or three, C."""
    columns = max(1, math.ceil(math.sqrt(len(titles))))
    rows = max(1, math.ceil(len(titles) / columns))
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image_CHW, title in zip(figure.axes, images_NCHW, titles, strict=False):
        axes.imshow(image_CHW.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=8)
    if not titles:
        figure.suptitle("no mistakes")
    return figure
