"""Tables in CSV files: columns of numbers, and one of classes; or new rows for `predict`.

    python -m ml_project.prepare dataset=table dataset.file=data/raw/iris.csv dataset.label=target

Legend: N rows, F features: columns of numbers.
"""

from __future__ import annotations

import difflib
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from runengine import UserError, listed

from .datasets import RawDataset, others

MISSING = {"", "?", "na", "n/a", "nan", "none", "null"}  # compared in lower case
AS_IT_STANDS = {"header": None, "dtype": object, "na_filter": False, "skip_blank_lines": False}  # every value as text
LARGEST = 1e100  # the squares of larger ones, summed up, may be more than float64 holds


def from_csv(file: str, label: str, ignore: Sequence[str]) -> RawDataset:
    """A CSV file: a line of names, then one row an example.

    Args:
        file: in UTF-8, separated by commas, semicolons or tabs.
        label: the column of the classes, words or numbers.
        ignore: columns that are left out, such as a number of the row.
    """
    table = _read_csv(Path(file))
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
    table = _read_csv(file)
    if absent := [name for name in data["features"] if name not in table]:
        raise UserError(f"{file} lacks what the model was trained on: {listed(absent)}.")
    values_NF = _numbers(file, table[data["features"]])
    standardised_NF: np.ndarray = (values_NF - np.array(data["mean"])) / np.array(data["std"])
    return standardised_NF.astype(np.float32)


def _read_csv(file: Path) -> pd.DataFrame:
    """Every value as text; the index has the numbers of a spreadsheet's rows: the names of the columns are row 1."""
    if not file.is_file():
        raise UserError(f"{file} does not exist. Put your table there, or set dataset.file.")
    try:
        text = file.read_text(encoding="utf-8-sig")  # Excel marks UTF-8 by three bytes
    except UnicodeDecodeError:
        raise UserError(f"{file} is no text in UTF-8. From Excel, save it as `CSV UTF-8`.") from None
    lines = text.lstrip("\n") or "\n"  # pandas counts the columns in the first line
    first_row = 1 + len(text) - len(lines)
    separator = max(",;\t", key=lines.partition("\n")[0].count)
    try:  # pandas' other engine reads `"2"3` as 23, and fills up rows that are too short
        table = pd.read_csv(io.StringIO(lines), sep=separator, engine="python", **AS_IT_STANDS)
    except pd.errors.ParserError as error:
        if too_long := re.fullmatch(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error)):
            wanted, line, found = map(int, too_long.groups())
            raise _of_another_length(file, first_row - 1 + line, found, wanted) from None
        raise UserError(f"{file} is no table of values separated by {separator!r}: {error}.") from None
    table.index += first_row
    table = table.dropna(how="all")  # empty lines; an empty value is "", and only what is absent NaN
    if len(table) < 2:
        raise UserError(f"{file} holds no rows: it needs a line of names, then one line an example.")
    names, table = table.iloc[0].map(str.strip), table.iloc[1:]
    for column in np.flatnonzero(names == ""):
        raise UserError(
            f"{file}: column {column + 1} has no name. Name it, or delete it (pandas: to_csv(index=False))."
        )
    if twice := sorted(set(names[names.duplicated()])):
        raise UserError(f"{file} has more than one column {listed(twice)}. Give each a name of its own.")
    lengths = table.count(axis=1)
    for row in table.index[lengths < len(names)]:
        raise _of_another_length(file, row, lengths[row], len(names))
    return table.set_axis(names, axis=1)


def _of_another_length(file: Path, row: int, found: int, wanted: int) -> UserError:
    return UserError(f"{file}, row {row}: {found} values for {wanted} columns. Fix this row.")


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
    missing = np.argwhere(texts.map(lambda text: text.strip().lower() in MISSING))
    for row, column in missing[:1]:
        raise UserError(
            f"{file}, row {texts.index[row]}, column {texts.columns[column]!r}: the value is missing"
            f"{others(len(missing))}. Fill in what is missing, or delete these rows or columns."
        )
