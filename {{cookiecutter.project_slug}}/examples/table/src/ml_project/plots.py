"""The figures a run leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure  # without pyplot: no window, no global state


def learning_curve(rows: Sequence[dict[str, float]]) -> Figure:
    """Loss and mean absolute error over the epochs; `rows` are those of `history.csv`."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    epochs = [row["epoch"] + 1 for row in rows]
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "mae"), strict=True):
        for stage in ("train", "val"):
            axes.plot(epochs, [row.get(f"{stage}/{metric}", np.nan) for row in rows], marker=".", label=stage)
        axes.set(xlabel="epoch", ylabel=metric)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def predicted_against_true(targets_N: np.ndarray, answers_N: np.ndarray, name: str) -> Figure:
    """Each row a point; on the line the answer is right. Both in the table's unit."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(targets_N, answers_N, s=12, alpha=0.6)
    ends = [min(targets_N.min(), answers_N.min()), max(targets_N.max(), answers_N.max())]
    axes.plot(ends, ends, color="black", linewidth=1)
    axes.set(xlabel=name, ylabel=f"predicted {name}", aspect="equal")
    axes.grid(alpha=0.3)
    return figure


def residuals(targets_N: np.ndarray, answers_N: np.ndarray, name: str) -> Figure:
    """What is left to explain: over what was predicted, and how often each."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    left.scatter(answers_N, targets_N - answers_N, s=12, alpha=0.6)
    left.set(xlabel=f"predicted {name}", ylabel=f"{name}, true - predicted")
    right.hist(targets_N - answers_N, bins=20, orientation="horizontal")
    right.set(xlabel="rows")
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=1)
        axes.grid(alpha=0.3)
    return figure
