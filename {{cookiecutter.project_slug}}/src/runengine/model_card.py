"""Write a model card and a data sheet from what a run has recorded.

    python -m ml_project.card                     # of the newest run
    python -m ml_project.card runs/digits/...     # of this one

`model-card.md` and `data-sheet.md` go into the run's folder. What only a person can know is marked "Not stated."; an
answer in its place is kept when the pages are written again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .settings.config import CONF, deciding, flatten
from .settings.errors import one_sentence
from .runs.run import Run, find, load_config, program, write_whole
from .runs.provenance import read_data, same_data

SUMMARY = "Write a model card and a data sheet from what a run has recorded."
NOT_STATED = "Not stated."
MODEL_CARD = "model-card.md"
DATA_SHEET = "data-sheet.md"
QUESTIONS = {  # after Mitchell et al. 2019 and Gebru et al. 2021, in short
    MODEL_CARD: ("Intended use", "Uses to avoid", "Limits", "Ethical considerations"),
    DATA_SHEET: ("Why and by whom it was collected", "Consent and privacy", "Known gaps", "Licence"),
}
PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numpy")  # the others are in environment.json


def write_cards(run: Run) -> list[Path]:
    """Both pages, with the answers that stood in them before."""
    parts = {MODEL_CARD: model_card(run), DATA_SHEET: data_sheet(run)}
    for name, text in parts.items():
        file = run.folder / name
        before = file.read_text(encoding="utf-8") if file.is_file() else ""
        asked = "\n\n".join(f"## {question}\n\n{answer(before, question)}" for question in QUESTIONS[name])
        write_whole(file, f"{text}\n\n{asked}\n")
    return [run.folder / name for name in parts]


def answer(page: str, question: str) -> str:
    """What stands below this heading."""
    found = re.search(rf"^## {re.escape(question)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return (found[1].strip() if found else "") or NOT_STATED


def model_card(run: Run) -> str:
    cfg = load_config(run)
    start = json.loads(run.starts.read_text(encoding="utf-8").splitlines()[-1]) if run.starts.is_file() else {}
    environment = _json(run.folder / "environment.json")
    packages = environment.get("packages", {})
    commit = start.get("git_commit", "in no Git repository")
    best, test = _json(run.metrics), _json(run.folder / "test_metrics.json")
    classes = _per_class(run.folder / "per_class.csv")
    parts = [
        f"# Model card: {cfg.model._target_.split('.')[-1]} on {cfg.experiment_name}",
        table(
            ("what", "value"),
            [
                ("model", f"`{cfg.model._target_}`"),
                ("run", f"`{run.folder.name}`"),
                ("trained", start.get("started_at", "unknown")),
                ("command", f"`{start.get('command', 'unknown')}`"),
                ("commit", commit + (", with changes (`uncommitted.diff`)" if start.get("git_dirty") else "")),
                ("Python", environment.get("python", "unknown")),
                ("packages", ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages)),
                ("system", environment.get("system", "unknown")),
                ("GPUs", ", ".join(environment.get("gpus", [])) or "none"),
            ],
        ),
        "## What it reaches",
        f"The checkpoint is the one of the epoch with the least `val/loss` (epoch {int(best.get('epoch', 0)) + 1})."
        if best
        else "The run is not finished.",
        table(("metric", "value"), [(f"`{name}`", number(best[name])) for name in best if "/" in name]),
        table(("metric", "value"), [(f"`{name}`", number(value)) for name, value in test.items()])
        or f"The test split was not measured: `{program('evaluate')} {run.folder.as_posix()}` does it.",
        "One run is one draw: another seed gives another figure.",
    ]
    if classes:
        parts += ["### Each class, on the test split", table(list(classes[0]), [list(row.values()) for row in classes])]
    rows = [(f"`{key}`", f"`{value}`") for key, value in flatten(OmegaConf.create(deciding(cfg)))]
    return "\n\n".join(part for part in [*parts, "## Settings", table(("setting", "value"), rows)] if part)


def data_sheet(run: Run) -> str:
    cfg, data = load_config(run), read_data(run.folder)
    folder = Path(cfg.data.folder)
    hashes = [(f"`{key}`", f"`{value}`") for key, value in data.items() if key.startswith("data_")]
    if data and same_data(folder, data):  # the folder may hold other data by now
        split = _json(folder / "split.json")
        hashes += [(f"SHA-256 of `{name}.npz`", f"`{value}`") for name, value in split["sha256"].items()]
        hashes.append(("seed of the split", f"`{split['split_seed']}`"))
    shape = " x ".join(str(length) for length in cfg.data.image_shape)
    parts = [
        f"# Data sheet: {folder.as_posix()}",
        table(
            ("what", "value"),
            [
                ("source", source_of(folder)),
                ("folder", f"`{folder.as_posix()}`"),
                ("images", f"{shape} (channels, height, width)"),
                ("classes", ", ".join(data.get("classes", [])) or str(cfg.data.num_classes)),
                ("columns", ", ".join(data.get("features", []))),
                *hashes,
            ],
        ),
        "## Splits",
        table(("split", "examples"), [(f"`{name}`", str(count)) for name, count in data.get("rows", {}).items()])
        or "The run has no record of its data.",
    ]
    return "\n\n".join(part for part in parts if part)


def source_of(folder: Path) -> str:
    """What conf/ says of the raw data that are prepared into this folder."""
    prepare: Any = OmegaConf.load(CONF / "prepare.yaml")
    chosen = [each.source for each in prepare.defaults if OmegaConf.is_dict(each) and "source" in each]
    for file in sorted((CONF / "source").glob("*.yaml")):
        cfg: Any = OmegaConf.load(file)
        if cfg.get("folder", prepare.folder if file.stem in chosen else "") == folder.as_posix():
            lines = file.read_text(encoding="utf-8").splitlines()
            about = [line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line]
            return f"`source={file.stem}`: {' '.join(about)}"
    return "none of `conf/source/`"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown; empty without rows, and without the rows whose last cell is."""
    lines = ["| " + " | ".join(str(cell).replace("|", r"\|") for cell in row) + " |" for row in rows if row[-1]]
    return "\n".join(["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", *lines]) if lines else ""


def number(value: str | float) -> str:
    return f"{float(value):.4f}"


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


def _per_class(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    return [row | {name: number(row[name]) for name in ("precision", "recall", "f1")} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(prog=program("card"), description=SUMMARY)
    parser.add_argument("run", nargs="?", help="the folder of a run; without it the newest")
    for file in write_cards(find(parser.parse_args().run)):
        open_ = file.read_text(encoding="utf-8").count(f"\n{NOT_STATED}\n")
        print(f"wrote {os.path.relpath(file)}" + (f": {open_} questions are open" if open_ else ""))


if __name__ == "__main__":
    with one_sentence():
        main()
