"""Data that `prepare` has written: a folder that is complete or not there, and the command that trains on it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ..settings import project
from ..settings.config import compose
from ..settings.errors import UserError
from ..settings.files import sha256

RECORD = "split.json"


def prepared_folder(folder: Path, record: dict[str, Any]) -> AbstractContextManager[Path]:
    """A new folder to write files into, by `with`; it takes the place of `folder` when all went well.

    Args:
        folder: one that was made so before is replaced as a whole.
        record: what is known of the data at the end; `sha256`, that of each file, is added. It becomes `split.json`.

    Raises:
        UserError: what stands there was not made so. This call raises it: make it before what takes long.
    """
    if folder.exists() and not (folder / RECORD).exists() and any(folder.iterdir()):
        raise UserError(f"{folder} was not made by prepare, and would be replaced. Choose another folder=...")
    return _in_place_of(folder, record)


@contextmanager
def _in_place_of(folder: Path, record: dict[str, Any]) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".prepare-") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        yield new
        record["sha256"] = {file.name: sha256(file) for file in sorted(new.iterdir())}
        (new / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.move(folder, Path(temporary) / "old")
        new.replace(folder)


def train_command(dataset: str, folder: str) -> str:
    """What trains on data that were prepared by `dataset=...` in this folder: only what differs from the defaults."""
    choice = [f"data={dataset}"] if dataset in project.choices("data") else []
    cfg = compose("train", choice)
    choice = [*choice, f"experiment_name={dataset}"] if cfg.data != compose("train").data else []
    if cfg.data.folder != folder:
        choice.append(f"data.folder={folder}")
    return " ".join([f"python -m {project.current().package}.train", *choice])
