"""The figures of the bench as a table on the terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from .verdicts import UNITS, Machine, Row

COLUMNS = 100  # the least width of a terminal that shows the table
LINE = "{:<41} {:<5} {:>17} {:>4} {:>7} {:>5} {:>7} {}"
NOT_ON_A_CPU = "compiled steps (compiling takes longer than all of this), tf32, fp16 and fp8 (no units for them)"


def figure(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    for least, thousands, letter in ((1e6, 1e6, "M"), (1e5, 1e3, "k")):
        if value >= least:
            return f"{float(f'{value:.3g}') / thousands:.4g} {letter}"
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if value < 0.1 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(rows: list[Row], machines: list[Machine], now: dict[str, Any]) -> str:
    """The table, at most COLUMNS wide."""
    on_battery = ", on battery" if now["on_battery"] else ""
    busy = (now["load_average_1min"] or 0) > now["cpus"] / 2
    said = (
        f"{now['at']}: torch {now['torch']}, driver {now['driver'] or 'none'}, Python {now['python']}, {now['cpus']} "
        f"CPUs, {now['threads']} threads, load average {now['load_average_1min']} before the start{on_battery}"
        f"{': other programs are running, so these figures are too low' if busy else ''}"
    )
    lines = textwrap.wrap(said, COLUMNS)
    sections = [(machine.device, _about(machine)) for machine in machines]
    sections.append(("host", "the limit of the data loader is this project's training step"))
    sections.append(("all", "all GPUs together"))
    for device, about in sections:
        of_device = [row for row in rows if row.device == device]
        if not of_device:
            continue
        lines += ["", *textwrap.wrap(f"{device}: {about}", COLUMNS)]
        lines.append(LINE.format("what", "dtype", "reached", "+-", "limit", "ratio", "before", "verdict"))
        for row in of_device:
            lines += _shown(row)
        if device == "cpu":
            lines += textwrap.wrap(f"not measured: {NOT_ON_A_CPU}", COLUMNS)
    return "\n".join(lines)


def _about(machine: Machine) -> str:
    if machine.chip:
        note = f" ({machine.chip.note})" if machine.chip.note else ""
        return f"{machine.name}; limits: {machine.chip.source}{note}"
    why = "no limits of CPUs are published" if machine.device == "cpu" else "it is not in gpu_specs.py"
    return f"{machine.name}; {why}, so its own matrix product and copy, as measured here, are the limits"


def _shown(row: Row) -> list[str]:
    reached = f"{figure(row.reached)} {UNITS[row.unit][0]}" if row.reached else "-"
    spread = f"{row.spread:.0%}" if row.spread is not None else "-"
    ratio = row.ratio(row.limit)
    of_limit = "-" if ratio is None else f"{ratio:.0%}" if ratio < 10 else f"{ratio:,.0f}x"
    cells = (row.what, row.dtype, reached, spread, figure(row.limit), of_limit, figure(row.before), row.verdict)
    return [LINE.format(*cells), *textwrap.wrap(row.note, COLUMNS, initial_indent="    ", subsequent_indent="    ")]
