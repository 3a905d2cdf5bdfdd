"""Data that `prepare` has written: a folder that is complete or not there, how it is read, and what trains on it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ..settings import project
from ..settings.config import compose
from ..settings.console import listed
from ..settings.errors import UserError
from ..settings.files import sha256

RECORD = "split.json"
LARGE_BYTES = 1 << 30  # files beyond stay on the disk; to compare all of them takes minutes


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


def read_prepared(folder: Path, files: Sequence[Path], **settings: Any) -> dict[str, Any]:
    """What `prepare` wrote down in `split.json`, after a look at what is wanted: is it as it was written?

    Args:
        folder: of prepared data.
        files: in it. One of more than 1 GiB is not compared: read it by `StoredArray`, which sees whether it was cut.
        settings: those of `data` that must be what was written down, by their names, such as num_features=10.

    Returns:
        The record, in which a key that is not there is a UserError as well.

    Raises:
        UserError: a file is absent or damaged, or the settings are those of other data.
    """
    record_file, again = folder / RECORD, f"Run: {prepare_command(folder, damaged=True)}"
    for file in (*files, record_file):
        if not file.is_file():
            raise UserError(f"{file.as_posix()} does not exist{_others(folder)}{prepare_command(folder)}")
    try:
        record = _Record(json.loads(record_file.read_text(encoding="utf-8")))
        record.damaged = f"{record_file.as_posix()} is damaged. {again}"
        checksums = {file: record["sha256"][file.name] for file in files}
        wanted = {name: record[name] for name in settings}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{record_file.as_posix()} is damaged. {again}") from None
    for file, checksum in checksums.items():
        if file.stat().st_size <= LARGE_BYTES and sha256(file) != checksum:
            raise UserError(f"{file.as_posix()} is damaged: its SHA-256 is not the one in {RECORD}. {again}")
    for name, value in settings.items():
        if value != wanted[name]:
            raise UserError(
                f"data.{name} is {value}, but for {folder.as_posix()} it must be {wanted[name]}. A run wants the data "
                "it was trained on; a new one has to type nothing: let conf/data/ say ${prepared:" + name + "}."
            )
    return record


class _Record(dict[str, Any]):
    damaged = ""

    def __missing__(self, key: str) -> Any:
        raise UserError(self.damaged)


def prepare_command(folder: Path, *, damaged: bool = False) -> str:
    """What has to be typed to have this folder; where it is damaged, DVC must not take it from its cache again."""
    owner = project.current()
    if folder.name in project.choices("dataset"):
        return f"python -m {owner.package}.prepare dataset={folder.name}"
    if _is_numbered(folder):
        return f"python -m {owner.package}.{folder.parent.name}"
    return "make data FORCE=1" if damaged else "make data"


def _is_numbered(folder: Path) -> bool:
    """Is it one of several that a script of this name writes, such as data/folds/3 by folds.py?"""
    return folder.name.isdigit() and (project.current().folder / f"{folder.parent.name}.py").is_file()


def _others(folder: Path) -> str:
    """Which there are where this one is not, and what to do."""
    names = [file.parent.name for file in folder.parent.glob(f"*/{RECORD}")] if _is_numbered(folder) else []
    there = [str(number) for number in sorted(int(name) for name in names if name.isdecimal())]
    if folder.exists() or not there:
        return ". Run: "
    return f": {folder.parent.as_posix()} holds {listed(there, 20)}. Take one of these, or have more written by: "


def train_command(dataset: str, folder: str) -> str:
    """What trains on data that were prepared by `dataset=...` in this folder: only what differs from the defaults."""
    choice = [f"data={dataset}"] if dataset in project.choices("data") else []
    cfg = compose("train", choice)
    choice = [*choice, f"experiment_name={dataset}"] if cfg.data != compose("train").data else []
    if cfg.data.folder != folder:
        choice.append(f"data.folder={folder}")
    return " ".join([f"python -m {project.current().package}.train", *choice])
