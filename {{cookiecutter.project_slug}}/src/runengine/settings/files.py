"""Files that are there complete or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A file next to `file` to write into; it takes the place of `file` when all went well."""
    new = file.with_name(f".{file.stem}.new{file.suffix}")  # libraries choose the format by the suffix
    try:
        yield new
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def atomic_write(file: Path, text: str) -> None:
    """Write a text file that is there complete or not at all."""
    with atomic_file(file) as new:
        new.write_text(text, encoding="utf-8")


def sha256(file: Path) -> str:
    """Of the file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
