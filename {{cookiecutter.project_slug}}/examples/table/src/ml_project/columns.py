"""The columns of a table, numbers and categories: what is measured on the training rows, and rows as arrays.

What `split.json` says of them, and with it every run and every exported model, is made here by `measure`.

Legend: N rows, C columns that the model looks at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runengine import UserError, is_missing, listed

if TYPE_CHECKING:  # a training does without
    import pandas as pd

LARGEST = 1e100  # the squares of larger ones, summed up, may be more than float64 holds
AS_NUMBER = r"[-+]?[\d.,' ]*\d[\d.,' ]*%?"  # 0,5 or 1 000 or 7 %: in a country's or a spreadsheet's own way
MOST_CATEGORIES = 100  # a column with more different words is a name or a free text


def find_categories(file: Path, table: pd.DataFrame, named: Collection[str]) -> dict[str, list[str]]:
    """The columns of words, and those that are named, each with its different values, sorted."""
    categories = {}
    for name in table:
        texts = table[name][~_is_missing(table[name])]
        if texts.empty:
            raise UserError(f"{file}: the column {name!r} is empty. Leave it out: dataset.ignore=[{name}]")
        numbers = texts.map(_number).map(math.isfinite)
        if name not in named and not numbers.any() and all(re.fullmatch(AS_NUMBER, each) for each in texts):
            raise UserError(
                f"{file}, row {texts.index[0]}, column {name!r}: {texts.iloc[0]!r} looks like a number, but is none. "
                f"Write numbers such as 0.5, or say that they are categories: dataset.categories=[{name}]"
            )
        if numbers.all() and name not in named:
            continue
        if numbers.any() and name not in named:
            row = texts.index[~numbers][0]
            raise UserError(
                f"{file}, row {row}, column {name!r}: {texts[row]!r} is no number, as others in this column are. Write "
                f"numbers such as 0.5, or say that they are categories: dataset.categories=[{name}]"
            )
        categories[name] = sorted(set(texts))
        if len(categories[name]) > MOST_CATEGORIES:
            raise UserError(
                f"{file}: the column {name!r} has {len(categories[name])} different words, more than "
                f"{MOST_CATEGORIES}: a model learns nothing from a name. Leave it out: dataset.ignore=[{name}]"
            )
    return categories


def measure(rows_NC: np.ndarray, names: list[str], categories: Mapping[str, list[str]]) -> dict[str, Any]:
    """What is known of the columns from the training rows: mean, deviation, and how often a value is missing."""
    numbers = [index for index, name in enumerate(names) if name not in categories]
    known_NC = np.ma.masked_invalid(rows_NC)
    of_numbers = [(names[index], known_NC[:, index]) for index in numbers]
    return {
        "columns": names,
        "mean": {name: float(values.mean()) if values.count() else 0.0 for name, values in of_numbers},
        # 1: it never changes, or is always missing
        "std": {name: float(values.std()) if values.count() and values.std() else 1.0 for name, values in of_numbers},
        "categories": dict(categories),
        "missing": {names[index]: int(count) for index, count in enumerate(np.isnan(rows_NC).sum(axis=0)) if count},
    }


def to_rows(file: Path, table: pd.DataFrame, columns: list[str], categories: Mapping[str, list[str]]) -> np.ndarray:
    """Float64, N C: numbers as they stand, a category as its place in the list, NaN for what is missing.

    Raises:
        UserError: a column is not there, or a value is none of those that the training knew.
    """
    if absent := [name for name in columns if name not in table]:
        raise UserError(f"{file} lacks columns that the model looks at: {listed(absent)}. Add them.")
    return np.stack([_values(file, table[name], categories.get(name)) for name in columns], axis=1)


def to_numbers(file: Path, texts: pd.Series) -> np.ndarray:
    """A column of numbers of which none is missing, such as the target: float64, N."""
    missing = _is_missing(texts)
    for row in texts.index[missing][:1]:
        raise UserError(
            f"{file}, row {row}, column {texts.name!r}: the value is missing. Fill it in, or delete the row."
        )
    return _values(file, texts, None, "Name another dataset.target; for classes, take the example `images`.")


def _values(
    file: Path,
    texts: pd.Series,
    categories: list[str] | None,
    advice: str = "Write a number such as 0.5, or leave it empty.",
) -> np.ndarray:
    missing = _is_missing(texts)
    places = {name: float(place) for place, name in enumerate(categories or [])}
    value_of = _number if categories is None else lambda text: places.get(text, math.nan)
    values_N = np.array([value_of(text) for text in texts], dtype=np.float64)
    wrong = ~missing.to_numpy() & ~(np.abs(values_N) <= LARGEST)
    for row in texts.index[wrong][:1]:
        place, text = f"{file}, row {row}, column {texts.name!r}", texts[row]
        if categories is not None:
            raise UserError(f"{place}: {text!r} was not there in the training, only {listed(categories, 10)}. Fix it.")
        problem = "is too large" if math.isfinite(_number(text)) else "is no number"
        raise UserError(f"{place}: {text!r} {problem}. {advice}")
    values_N[missing] = math.nan
    return values_N


def _is_missing(texts: pd.Series) -> pd.Series:
    return texts.map(is_missing).astype(bool)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
