"""Tables: a CSV file is read strictly, and what is not clear is refused with its place; answers are written."""

from __future__ import annotations

import io
import re
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..settings.console import listed
from ..settings.errors import UserError
from ..settings.files import atomic_file
from ..settings.start import typed_path

if TYPE_CHECKING:  # a training does without
    import pandas as pd

MISSING = {"", "?", "na", "n/a", "nan", "none", "null"}  # compared in lower case
AS_IT_STANDS = {"header": None, "dtype": object, "na_filter": False, "skip_blank_lines": False}  # every value as text


def read_csv(file: Path) -> pd.DataFrame:
    """A line of names, then one row an example; every value as text.

    Args:
        file: in UTF-8, separated by commas, semicolons or tabs.

    Returns:
        The index has the numbers of a spreadsheet's rows: the names of the columns are row 1.

    Raises:
        UserError: names the row, if one is longer or shorter than the others.
    """
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


def is_missing(text: str) -> bool:
    """Does this stand for a value that is not known: an empty one, `NA`, `nan`, `none`, `null` or `?`?"""
    return text.strip().lower() in MISSING


def typed_table(text: str) -> Path:
    """The path of a table to be written, in the folder where the command was typed; for argparse, as `type=`.

    Raises:
        ArgumentTypeError: it would be of another kind, or in a folder that is not there.
    """
    file = typed_path(text)
    if file.suffix not in (".csv", ".parquet"):
        raise ArgumentTypeError(f"it must end with .csv or .parquet, got {file}.")
    if not file.parent.is_dir():
        raise ArgumentTypeError(f"the folder {file.parent} does not exist. Make it, or name another.")
    return file


def write_table(table: pd.DataFrame, file: Path | None) -> None:
    """As CSV on standard output, or into this `.csv` or `.parquet` file, which is there complete or not at all."""
    if file is None:
        print(table.to_csv(index=False, float_format="%.6g", lineterminator="\n"), end="")
        return
    with atomic_file(file) as new:
        table.to_parquet(new, index=False) if file.suffix == ".parquet" else table.to_csv(new, index=False)
    print(f"wrote {file}: {len(table)} rows", file=sys.stderr)
