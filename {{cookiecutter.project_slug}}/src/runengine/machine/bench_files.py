"""Files of the bench: the best figures of each chip, and results that can be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..settings import project
from ..settings.errors import UserError
from ..settings.files import atomic_write
from .bench_table import figure
from .verdicts import NOISY, UNITS, Machine, Row, chip_of

COMMAND = f"python -m {project.ENGINE} bench"
HISTORY = Path("bench.json")  # goes into Git, so that everybody with this chip sees what it reached
RESULT, BEST = "ml-bench result 1", "ml-bench best 1"  # the `format` of these files, by which they are recognised


def read_best(file: Path) -> dict[str, Any]:
    """The best figures of each chip with each torch.

    Raises:
        UserError: the file is damaged, or is not one of the bench.
    """
    if not file.exists():
        return {}
    read = _read(file, BEST, lambda read: all(
        isinstance(entry, dict) for rows in [read["best"], *read["best"].values()] for entry in rows.values()
    ))  # fmt: skip
    if read is None:
        raise UserError(
            f"{file} is damaged: it does not hold the best figures of a bench, and is not changed. "
            f"Restore it from Git (git checkout -- {file}), or delete it to start over."
        )
    best: dict[str, Any] = read["best"]
    return best


def keep_best(file: Path, best: dict[str, Any], rows: list[Row], machines: list[Machine], now: dict[str, Any]) -> int:
    """Write the rows that are the best of their chip so far; returns how many. Broken and noisy rows never count."""
    kept = json.loads(json.dumps(best))
    num_better = 0
    for row in rows:
        of_chip = kept.setdefault(chip_of(row, machines), {})
        before = of_chip.get(row.key, {}).get(f"reached_{row.unit}")  # perhaps of another GPU of the same name
        sure = row.verdict != "broken" and (row.spread or 0) <= NOISY
        if row.reached and sure and (row.ratio(before) or math.inf) > 1:
            entry = {f"reached_{row.unit}": float(f"{row.reached:.4g}"), "at": now["at"][:10]}
            entry |= {"driver": now["driver"], "python": now["python"]}
            of_chip[row.key] = entry
            num_better += 1
    if num_better:
        atomic_write(file, json.dumps({"format": BEST, "best": kept}, indent=1, sort_keys=True) + "\n")
    return num_better


def result(rows: list[Row], now: dict[str, Any]) -> dict[str, Any]:
    return {"format": RESULT, "conditions": now, "rows": [row.as_json() for row in rows]}


def read_result(file: Path) -> dict[str, Any]:
    """Read a file that `--json` has written.

    Raises:
        UserError: the file is missing, or is not one of the bench.
    """
    again = f"Make one with: {COMMAND} --json {file}"
    if not file.is_file():
        raise UserError(f"{file} does not exist. {again}")
    keys = {"device", "what", "dtype"}
    read = _read(file, RESULT, lambda read: {"chips", "torch", "at"} <= read["conditions"].keys()
                 and all(keys <= row.keys() for row in read["rows"]))  # fmt: skip
    if read is None:
        raise UserError(f"{file} is not a result of this bench. {again}")
    return read


def _read(file: Path, kind: str, valid: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """A file of the bench; None if it is not one of this kind."""
    try:
        read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return read if read["format"] == kind and valid(read) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def compare(file_a: Path, file_b: Path) -> str:
    """B next to A, row by row."""
    a, b = read_result(file_a), read_result(file_b)
    lines = [f"A  {file_a}, {a['conditions']['at']}", f"B  {file_b}, {b['conditions']['at']}"]
    for name in ("chips", "torch"):
        was, now = (plain(each["conditions"][name]) for each in (a, b))
        if was != now:
            lines.append(f"warning: {name} is {was} in A, but {now} in B")
    lines += ["", f"{'what':<52} {'dtype':<5} {'A':>9} {'B':>9} {'B/A':>6}"]
    of_a = {(row["device"], row["what"], row["dtype"]): row for row in a["rows"]}
    for row in b["rows"]:
        other = of_a.pop((row["device"], row["what"], row["dtype"]), {})
        unit = next((unit for unit in UNITS if f"reached_{unit}" in row), "")
        here, there = row.get(f"reached_{unit}"), other.get(f"reached_{unit}")
        ratio = f"{here / there:.2f}" if here and there else "-"
        better = "less is better" if unit and not UNITS[unit][1] else ""
        what = f"{row['device']} {row['what']}"
        lines.append(f"{what:<52} {row['dtype']:<5} {figure(there):>9} {figure(here):>9} {ratio:>6} {better}".rstrip())
    lines += [f"only in A: {' '.join(key)}" for key in of_a]
    return "\n".join(lines)


def plain(value: object) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)
