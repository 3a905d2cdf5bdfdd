"""Predict the target for new rows with a trained model; a table on standard output, or in a file.

    python -m ml_project.predict new.csv
    python -m ml_project.predict new.csv --model runs/diabetes/… --output answers.parquet
    python -m ml_project.predict new.csv --model models:/ml_project-diabetes@champion

The columns may stand in another order than in the training, and among others. An empty value is one that is missing.

Legend: N rows, C columns that the model looks at.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import runengine
from runengine import Run, UserError, read_csv

from .columns import to_rows

if TYPE_CHECKING:  # a training does without
    import pandas as pd
    import torch

KEPT = ("target", "columns", "categories")  # of what is known of the data, what goes with the model


class Model(NamedTuple):
    """A trained model, wherever it was loaded from."""

    answers: Callable[[np.ndarray], np.ndarray]  # rows_NC float64 -> answers_N float64, in the table's unit
    data: Mapping[str, Any]  # what the run's data.json says


def load(name: str | None) -> Model:
    """The model of a run's folder, of a checkpoint in it, or of MLflow (`models:/...`, `runs:/...`)."""
    if name and name.startswith(("models:/", "runs:/")):
        served = runengine.load_model(name)
        return Model(served.predict, served.metadata.metadata or {})
    import torch

    run, checkpoint = runengine.find_checkpoint(name)
    _, task, _ = runengine.load(checkpoint)
    record = runengine.read_data(run)
    model = complete(task.model, record)

    def answers(rows_NC: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            answers_N: np.ndarray = model(torch.from_numpy(rows_NC)).numpy()
        return answers_N

    return Model(answers, record)


def complete(model: torch.nn.Module, record: Mapping[str, Any]) -> torch.nn.Module:
    """Rows as the table has them in, answers in its unit out: what is served cannot be asked in other units."""
    from torch import Tensor, nn

    from .data import Encode

    class Complete(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.model = Encode(record), model
            self.mean, self.std = record["target_mean"], record["target_std"]

        def forward(self, rows_NC: Tensor) -> Tensor:
            answers_N: Tensor = self.model(self.encode(rows_NC)).double() * self.std + self.mean
            return answers_N

    return Complete().eval()


def export(run: Run) -> None:
    """Write the best model for `make promote`, `serve` and `export`: rows N C in, answers N out."""
    import torch

    from .prepare import files_of

    _, task, data = runengine.load(run)
    record = runengine.read_data(run)
    rows_NC, targets_N = (torch.from_numpy(np.load(file)) for file in files_of(data.folder, "test")[:2])

    def error(answers_N: torch.Tensor) -> dict[str, float]:
        return {"test/mae": float((answers_N - targets_N).abs().mean())}

    kept = {key: value for key, value in record.items() if key in KEPT}
    runengine.save_model(run, complete(task.model, record), rows_NC, kept, error)


def predict(model: Model, files: Sequence[Path]) -> pd.DataFrame:
    """For each row of these files: where it is, and the answer, in the unit of the table that was learned from."""
    import pandas as pd

    tables = []
    for file in files:
        texts = read_csv(file).map(str.strip)
        rows_NC = to_rows(file, texts, model.data["columns"], model.data["categories"])
        answers_N = model.answers(rows_NC)
        for row in texts.index[~np.isfinite(answers_N)][:1]:
            raise UserError(f"{file}, row {row}: the model answers with NaN. Give another --model.")
        answers = {"file": str(file), "row": texts.index, f"predicted_{model.data['target']}": answers_N}
        tables.append(pd.DataFrame(answers))
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    summary = "Predict the target for new rows with a trained model."
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.predict", description=summary)
    parser.add_argument("files", nargs="+", type=Path, help="CSV files with a line of names")
    parser.add_argument("--model", help="a run's folder, a checkpoint, or models:/...; without it the newest run")
    parser.add_argument("--output", type=runengine.typed_table, help="a .csv or .parquet file, else standard output")
    arguments = parser.parse_args()
    runengine.write_table(predict(load(arguments.model), arguments.files), arguments.output)


if __name__ == "__main__":
    with runengine.friendly_errors():
        main()
