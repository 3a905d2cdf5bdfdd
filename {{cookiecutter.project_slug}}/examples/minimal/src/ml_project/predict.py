"""Predict for new rows: a CSV file without a line of names in, one answer a line out.

    python -m ml_project.predict new.csv
    python -m ml_project.predict new.csv --model runs/points/…
    python -m ml_project.predict new.csv --model models:/ml_project-points@champion

Legend: N rows, F features.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import runengine
from runengine import Run, UserError

if TYPE_CHECKING:
    from torch import Tensor


def predict(name: str | None, features_NF: np.ndarray) -> np.ndarray:
    """Answers, float32, N, of the model of a run's folder, or of MLflow (`models:/...`); without a name the newest."""
    if name and name.startswith(("models:/", "runs:/")):
        served = runengine.load_model(name)
        _refuse_others(features_NF, served.metadata.signature.inputs.inputs[0].shape[1])
        answers_N: np.ndarray = served.predict(np.ascontiguousarray(features_NF))
        return answers_N
    import torch

    _, task, _ = runengine.load(runengine.find(name))
    _refuse_others(features_NF, task.example_input_array.shape[1])
    with torch.inference_mode():
        answers_N = task(torch.from_numpy(features_NF)).numpy()
    return answers_N


def _refuse_others(features_NF: np.ndarray, num_features: int) -> None:
    if features_NF.shape[1] != num_features:
        raise UserError(f"a row has {features_NF.shape[1]} numbers, but the model takes {num_features}. Fix the file.")


def export(run: Run) -> None:
    """Write the best model for `make promote`, `serve` and `export`: features N F in, answers N out."""
    _, task, data = runengine.load(run)
    features_NF, targets_N = data.split("test").tensors

    def loss(answers_N: Tensor) -> dict[str, float]:
        return {"test/loss": float((answers_N - targets_N).square().mean())}

    runengine.save_model(run, task.model, features_NF, {}, loss)


def read(file: Path) -> np.ndarray:
    """Float32, N F."""
    if not file.is_file():
        raise UserError(f"{file} does not exist. Give a CSV file of numbers.")
    try:
        features_NF = np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2)
    except ValueError as error:
        raise UserError(f"{file} is no table of numbers: {error}. Give a CSV file without a line of names.") from None
    if not np.isfinite(features_NF).all() or not len(features_NF):
        raise UserError(f"{file} holds no rows, or values that are no numbers. Fix them.")
    return features_NF


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.predict", description="Predict for new rows.")
    parser.add_argument("file", type=Path, help="a CSV file without a line of names")
    parser.add_argument("--model", help="a run's folder, or models:/...; without it the newest run")
    arguments = parser.parse_args()
    for answer in predict(arguments.model, read(arguments.file)):
        print(f"{answer:.6g}")


if __name__ == "__main__":
    with runengine.friendly_errors():
        main()
