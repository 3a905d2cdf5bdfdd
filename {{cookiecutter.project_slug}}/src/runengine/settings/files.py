"""Files that are there complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def drop_half_a_line(file: Path) -> None:
    """Cut off what a kill, a full disk or a power cut left at the end of a file of lines."""
    content = file.read_bytes() if file.is_file() else b""
    if content and not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)


def read_json(file: Path) -> dict[str, Any]:
    """What stands in the file; empty where there is none."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


def sha256(file: Path) -> str:
    """Of the file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
