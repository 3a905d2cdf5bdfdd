"""Tables in CSV files: columns of numbers, and one of classes; or new rows for `predict`.

    python -m ml_project.prepare dataset=table dataset.file=data/raw/iris.csv dataset.label=target

Legend: N rows, F features: columns of numbers.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runengine import UserError, is_missing, listed, read_csv

from .datasets import RawDataset, others

if TYPE_CHECKING:  # a training does without
    import pandas as pd

MOST_CLASSES = 20  # that may be numbers, if there are fewer than four rows for each
LARGEST = 1e100  # the squares of larger ones, summed up, may be more than float64 holds


def from_csv(file: str, label: str, ignore: Sequence[str]) -> RawDataset:
    """A CSV file: a line of names, then one row an example.

    Args:
        file: in UTF-8, separated by commas, semicolons or tabs.
        label: the column of the classes, words or numbers.
        ignore: columns that are left out, such as a number of the row.
    """
    table = read_csv(Path(file))
    names = list(table.columns)
    for name in [label, *ignore]:
        if name not in names:
            setting = "dataset.label" if name == label else "dataset.ignore"
            nearest = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {nearest[0]}?" if nearest else f"Set {setting}."
            raise UserError(f"{file} has no column {name!r}: its columns are {listed(names, 10)}. {hint}")
    features = [name for name in names if name not in {label, *ignore}]
    if not features:
        raise UserError(f"{file} has no column other than {listed([label, *ignore])}: nothing to learn from.")
    _refuse_missing(file, table[[label]])
    values_NF = _numbers(file, table[features])
    labels = table[label].map(str.strip).tolist()
    if len(set(labels)) > max(MOST_CLASSES, len(labels) / 4) and all(math.isfinite(_number(text)) for text in labels):
        raise UserError(
            f"{file}: the column {label!r} has {len(set(labels))} different numbers in {len(labels)} rows: they are no "
            "classes, but numbers to be predicted. Make a project of the example `table` for them."
        )
    numbers = all(re.fullmatch(r"0|-?[1-9]\d{0,17}", text) for text in labels)  # as numbers, 10 comes after 9
    return RawDataset(values_NF, np.array(labels, dtype=np.int64 if numbers else str), features=features)


def read_table(file: Path, data: Mapping[str, Any]) -> np.ndarray:
    """New rows for a model that was trained on a table: float32, N F, standardised as there.

    Args:
        file: a CSV file; the columns may stand in another order, and among others.
        data: the `features`, `mean` and `std` of the training, from `split.json` or the run's `data.json`.
    """
    if "features" not in data:
        raise UserError(f"{file} is a table, but the model was not trained on one. Give --model=runs/... that was.")
    table = read_csv(file)
    if absent := [name for name in data["features"] if name not in table]:
        raise UserError(f"{file} lacks what the model was trained on: {listed(absent)}.")
    values_NF = _numbers(file, table[data["features"]])
    standardised_NF: np.ndarray = (values_NF - np.array(data["mean"])) / np.array(data["std"])
    return standardised_NF.astype(np.float32)


def _numbers(file: str | Path, texts: pd.DataFrame) -> np.ndarray:
    """The values of these columns: float64, N F."""
    _refuse_missing(file, texts)
    values_NF: np.ndarray = texts.map(_number).to_numpy(dtype=np.float64)
    strange = np.argwhere(~(np.abs(values_NF) <= LARGEST))
    for row, column in strange[:1]:
        name, text = texts.columns[column], texts.iat[row, column].strip()
        problem = "is too large" if math.isfinite(values_NF[row, column]) else "is no number"
        raise UserError(
            f"{file}, row {texts.index[row]}, column {name!r}: {text!r} {problem}{others(len(strange))}. "
            f"Write numbers such as 0.5, or leave the column out: dataset.ignore=[{name}]"
        )
    return values_NF


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _refuse_missing(file: str | Path, texts: pd.DataFrame) -> None:
    missing = np.argwhere(texts.map(is_missing))
    for row, column in missing[:1]:
        raise UserError(
            f"{file}, row {texts.index[row]}, column {texts.columns[column]!r}: the value is missing"
            f"{others(len(missing))}. Fill in what is missing, or delete these rows or columns."
        )
