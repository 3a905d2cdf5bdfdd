"""Reads a CSV file strictly: a line of names, then one row an example. What is not clear is refused, with its place."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runengine import UserError, listed

if TYPE_CHECKING:  # a training does without
    import pandas as pd

MISSING = {"", "?", "na", "n/a", "nan", "none", "null"}  # compared in lower case
AS_IT_STANDS = {"header": None, "dtype": object, "na_filter": False, "skip_blank_lines": False}  # every value as text


def read_csv(file: Path) -> pd.DataFrame:
    """Every value as text; the index has the numbers of a spreadsheet's rows: the names of the columns are row 1."""
    import pandas as pd

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
