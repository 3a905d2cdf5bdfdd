"""A page on which one looks at the test split and at what a run answers there.

    python -m runengine look                     # of the newest run
    python -m runengine look runs/digits/...     # of this one

It calls `look` of the owner's `evaluate`, which calls `write_look`. The page is one file, `look.html` in the run's
folder: it needs no server and no network, and can be sent to somebody.
"""

from __future__ import annotations

import argparse
import base64
import html
import importlib
import io
import json
import math
import mimetypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_card import number
from .runs.find import find
from .runs.run import Run, read_numbers
from .settings import process, project
from .settings.errors import UserError
from .settings.files import atomic_write
from .tracking.results import send_again

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "Write a page of the test split with a run's answers."
MOST_ROWS = 5000  # of a page: with small pictures it is then some 10 MB
MOST_PIXELS = 128  # of the longer side of a picture
LOSS = "loss"


def write_look(run: Run, table: pd.DataFrame, picture: Callable[[int], Any] | None = None, *, sort: str = LOSS) -> None:
    """Write `look.html` into the run's folder: a table that is sorted and filtered in the browser.

    Args:
        run: whose answers they are.
        table: a row for each example: numbers and texts, by the names of their columns.
        picture: the picture of a row, by its number, as Pillow has it: `PIL`'s `fromarray` makes it of an array.
        sort: the column by which the rows stand at first, the greatest on top. Of more than 5000 the first are shown.

    Raises:
        UserError: the table has no such column, or no row.
    """
    if process.rank() != 0:
        return
    if sort not in table.columns:
        columns = ", ".join(map(str, table.columns))
        raise UserError(
            f"the page of {run.folder} is sorted by {sort}, which is none of its columns: {columns}. Add it, or pass "
            "sort=..."
        )
    if table.empty:
        raise UserError(f"the page of {run.folder} has no rows: the test split is empty. Run: make data")
    numbered = table.reset_index(drop=True).sort_values(sort, ascending=False, kind="stable").head(MOST_ROWS)
    metrics = ", ".join(f"{name} {number(value)}" for name, value in read_numbers(run.test_metrics).items())
    cut = f"the {len(numbered)} of {len(table)} examples with the greatest {sort}" if len(numbered) < len(table) else ""
    data = {
        "title": f"Predictions of {run.folder.name}",
        "about": "; ".join(filter(None, [metrics, cut])) or "measured on the test split",
        "columns": [str(column) for column in numbered.columns],
        "rows": [[_plain(value) for value in row] for row in numbered.itertuples(index=False)],
        "pictures": [_png(picture(int(row))) for row in numbered.index] if picture else None,
        "sort": sort,
    }
    # as it stands within <script>: no `<` may end it
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    page = (Path(__file__).with_name("look.html")).read_text(encoding="utf-8")
    title = html.escape(str(data["title"]))
    atomic_write(run.look, page.replace("<title>Predictions<", f"<title>{title}<").replace("DATA", text, 1))


def _plain(value: Any) -> str | float | int | None:
    """What JSON has; None for what is no number."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None if value is None else str(value)
    return value if math.isfinite(value) else None


def _png(picture: Any) -> str:
    """As an address that holds the picture itself."""
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return f"data:{mimetypes.types_map['.png']};base64,{base64.b64encode(file.getvalue()).decode()}"


def look(run: Run) -> Path:
    """Let the owner's `look` write the page of this run; returns its file.

    Raises:
        UserError: there is no such function, or it writes none.
    """
    name = run.test_module()
    function = getattr(importlib.import_module(name), "look", None) if name else None
    if function is None:
        file = f"src/{(name or f'{project.current().package}.evaluate').replace('.', '/')}.py"
        raise UserError(
            f"{file} has no function `look(run)` that says what the test split holds. Write one: it calls "
            "runengine.write_look."
        )
    function(run)
    if not run.look.is_file():
        raise UserError(f"{name}.look has written no page for {run.folder}. Let it call runengine.write_look.")
    return run.look


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {project.ENGINE} look", description=SUMMARY)
    parser.add_argument("run", nargs="?", help="the folder of a run; without it the newest")
    run = find(parser.parse_args().run)
    print(f"wrote {os.path.relpath(look(run))}: open it in a browser")
    send_again(run)
