"""Write a model card and a data sheet from what a run has recorded.

    python -m runengine card                     # of the newest run
    python -m runengine card runs/digits/...     # of this one

`model-card.md` and `data-sheet.md` go into the run's folder. What only a person can know is marked "Not stated."; an
answer in its place is kept when the pages are written again.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .runs.find import find
from .runs.provenance import data_folder, read_data, same_data
from .runs.run import Run, load_config, read_numbers
from .settings import project
from .settings.config import deciding, flatten
from .settings.files import atomic_write, read_json

SUMMARY = "Write a model card and a data sheet from what a run has recorded."
NOT_STATED = "Not stated."
QUESTIONS = {  # after Mitchell et al. 2019 and Gebru et al. 2021, in short
    Run.model_card.name: ("Intended use", "Uses to avoid", "Limits", "Ethical considerations"),
    Run.data_sheet.name: ("Why and by whom it was collected", "Consent and privacy", "Known gaps", "Licence"),
}
MOST_ROWS = 50  # of a table, and of a list: a page is read by people
NO_METRICS = ("epoch", "step")  # of metrics.json
FLOAT = re.compile(r"[+-]?\d+\.\d+(e[+-]?\d+)?")  # 0.5 and 1.2e-7; 12 is a count, 1.2.3 a version
PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy")  # the others are in environment.json


def write_cards(run: Run) -> list[Path]:
    """Write both pages; answers that a person has written into them are kept."""
    pages = {run.model_card: model_card(run), run.data_sheet: data_sheet(run)}
    for file, text in pages.items():
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        asked = "\n\n".join(f"## {question}\n\n{answer(before, question)}" for question in QUESTIONS[file.name])
        atomic_write(file, f"{text}\n\n{asked}\n")
    return list(pages)


def answer(page: str, question: str) -> str:
    """The text below this heading."""
    found = re.search(rf"^## {re.escape(question)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return (found[1].strip() if found else "") or NOT_STATED


def model_card(run: Run) -> str:
    cfg = load_config(run)
    start = (run.read_starts() or [{}])[-1]
    environment = read_json(run.environment)
    packages = environment.get("packages", {})
    commit = start.get("git_commit", "in no Git repository")
    best, test, model = read_numbers(run.metrics), read_numbers(run.test_metrics), model_of(run, cfg)
    parts = [
        f"# Model card: {model.rpartition('.')[2]} on {cfg.experiment_name}",
        facts([
            ("model", f"`{model}`"),
            ("run", f"`{run.folder.name}`"),
            ("trained", start.get("started_at", "unknown")),
            ("command", f"`{start.get('command', 'unknown')}`"),
            ("commit", commit + (", with changes (`uncommitted.diff`)" if start.get("git_dirty") else "")),
            ("Python", environment.get("python", "unknown")),
            ("packages", ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages)),
            ("system", environment.get("system", "unknown")),
            ("GPUs", ", ".join(environment.get("gpus", [])) or "none"),
        ]),
        "## What it reaches",
        which_epoch(cfg, best) if best else "The run is not finished.",
        metrics_table({name: best[name] for name in best if name not in NO_METRICS}),
        metrics_table(test) or f"The test split was not measured: `{run.test_command()}` does it.",
        "One run is one draw: another seed gives another figure.",
    ]  # fmt: skip
    for file in sorted(run.folder.glob("[!.]*.csv")):
        if file != run.history and (shown := small_table(file)):
            parts += [f"### {file.stem.replace('_', ' ')}", shown]
    settings = [(f"`{key}`", f"`{value}`") for key, value in flatten(OmegaConf.create(deciding(cfg)))]
    parts += [*exported(run), "## Settings", table(("setting", "value"), settings)]
    return "\n\n".join(part for part in parts if part)


def exported(run: Run) -> list[str]:
    """Each form in which the model left, and how far it answers from the run's own."""
    rows = [
        (
            f"`{made['file']}`",
            f"{made['bytes'] / 1e6:.3g} MB",
            made["runtime"],
            f"{made['difference']:.1e} of the greatest ({made['rounding']:.1e})",
            "; ".join(f"`{name}` {number(old)}, {number(new)}" for name, (old, new) in made["metrics"].items()),
            "; ".join(f"{size}: {old:.3g}, {new:.3g}" for size, (old, new) in made["latency_ms"].items()),
        )
        for made in read_json(run.exports).values()
    ]
    columns = (
        "file", "size", "run by", "answers differ by (rounding explains)", "metric before, after",
        "ms for so many examples before, after",
    )  # fmt: skip
    about = "Compared with the model itself on real examples, on the machine that exported it."
    return ["## Exported", about, table(columns, rows)] if rows else []


def model_of(run: Run, cfg: DictConfig) -> str:
    """What was trained: the class that the settings name, else the module that trains."""
    named = (OmegaConf.select(cfg, f"{group}._target_") for group in ("model", "task"))
    return next((str(target) for target in named if target), run.module())


def which_epoch(cfg: DictConfig, best: dict[str, Any]) -> str:
    metric, mode = (OmegaConf.select(cfg, f"monitor.{key}") for key in ("metric", "mode"))
    epoch = f"(epoch {int(best.get('epoch', 0)) + 1})"
    if metric is None:
        return f"The checkpoint is that of the last epoch {epoch}: no metric is monitored."
    return (
        f"The checkpoint is that of the epoch with the {'greatest' if mode == 'max' else 'least'} `{metric}` {epoch}."
    )


def metrics_table(metrics: dict[str, float]) -> str:
    return table(("metric", "value"), [(f"`{name}`", value) for name, value in metrics.items()])


def small_table(file: Path) -> str:
    """A table of the run's folder, if it is short enough for a page."""
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as opened:
        try:
            columns, *rows = list(itertools.islice(csv.reader(opened), MOST_ROWS + 2)) or [[]]
        except csv.Error:  # it is not a table
            return ""
    return table(columns, rows) if len(rows) <= MOST_ROWS else ""


def data_sheet(run: Run) -> str:
    cfg, data = load_config(run), read_data(run)
    folder = data_folder(cfg)
    record: list[tuple[str, Any]] = [(f"`{key}`", data[key]) for key in data if is_plain(data[key])]
    if folder and data and same_data(folder, data):  # the folder may hold other data by now
        sums = read_json(folder / "split.json").get("sha256", {})
        record += [(f"SHA-256 of `{name}`", f"`{value}`") for name, value in sums.items()]
    parts = [
        f"# Data sheet: {folder.as_posix() if folder else cfg.experiment_name}",
        "## What was recorded",
        facts([*([("source", source_of(folder))] if folder else []), *record]),
    ]
    for key, entries in data.items():
        if isinstance(entries, dict) and all(map(is_plain, entries.values())):
            parts += [
                f"### {key.replace('_', ' ')}",
                table(("name", "value"), [(f"`{name}`", entries[name]) for name in entries]),
            ]
    return "\n\n".join(part for part in [*parts, "" if data else "The run has no record of its data."] if part)


def is_plain(value: Any) -> bool:
    """Does it fit into a cell: text, a number, or a list of them?"""
    return all(isinstance(each, str | int | float) for each in (value if isinstance(value, list) else [value]))


def source_of(folder: Path) -> str:
    """What conf/prepare.yaml says of the raw data from which this folder is made; empty without such a file."""
    file = project.current().conf / "prepare.yaml"
    if not file.is_file():
        return ""
    prepare: Any = OmegaConf.load(file)
    for each in prepare.get("defaults", []):
        for group, chosen in each.items() if OmegaConf.is_dict(each) else ():
            for name, choice in project.choices(str(group)).items():
                cfg: Any = OmegaConf.load(choice)
                if cfg.get("folder", prepare.get("folder") if name == chosen else None) == folder.as_posix():
                    lines = choice.read_text(encoding="utf-8").splitlines()
                    about = [line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line]
                    return f"`{group}={name}`: {' '.join(about)}"
    return f"no choice of `conf/{file.name}` makes this folder"


def facts(rows: Sequence[tuple[str, Any]]) -> str:
    """A table of what is known: an empty value is left out."""
    return table(("what", "value"), [row for row in rows if row[1] not in ("", [], None)])


def table(columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """As Markdown; empty without rows."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]]) if rows else ""


def cell(value: Any) -> str:
    """A cell of a table: one line, numbers with four digits after the point, long lists cut short."""
    if isinstance(value, list):
        more = f", and {len(value) - MOST_ROWS} more" if len(value) > MOST_ROWS else ""
        return ", ".join(map(cell, value[:MOST_ROWS])) + more
    text = str(value)
    if isinstance(value, float) or (FLOAT.fullmatch(text) and isinstance(value, str)):
        return number(float(value))
    return " ".join(text.split()).replace("|", r"\|")


def number(value: float) -> str:
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {project.ENGINE} card", description=SUMMARY)
    parser.add_argument("run", nargs="?", help="the folder of a run; without it the newest")
    for file in write_cards(find(parser.parse_args().run)):
        open_ = file.read_text(encoding="utf-8").count(f"\n{NOT_STATED}\n")
        print(f"wrote {os.path.relpath(file)}" + (f": {open_} questions are open" if open_ else ""))
