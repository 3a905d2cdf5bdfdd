"""The figures a run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure  # without pyplot: no window, no global state


def learning_curve(rows: Sequence[dict[str, float]]) -> Figure:
    """Loss over the epochs; `rows` are those of `history.csv`."""
    figure = Figure(figsize=(5, 3.5))
    figure.subplots_adjust(left=0.14, bottom=0.15, right=0.97, top=0.95)  # layout="constrained" takes twice as long
    axes = figure.subplots()
    epochs = [row["epoch"] + 1 for row in rows]
    for stage in ("train", "val"):
        axes.plot(epochs, [row.get(f"{stage}/loss", np.nan) for row in rows], marker=".", label=stage)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def bits_by_place(bits_T: np.ndarray, baselines: Mapping[str, float]) -> Figure:
    """Bits a character for each place in the window, from the first on; the baselines are lines."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(bits_T) + 1), bits_T, marker=".", label="model")
    for index, (name, bits) in enumerate(baselines.items(), 1):
        axes.axhline(bits, color=f"C{index}", linestyle="--", label=name)
    axes.set(xlabel="characters that the model sees", ylabel="bits a character", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
