"""Files that are there complete or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


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
    """What stands in the file; empty where there is none, and where it is damaged, which is said once."""
    content = _parse(file.read_bytes()) if file.is_file() else {}
    if content is None:
        _say_damaged(file, "what it said is not known")
    return content or {}


def parse_lines(file: Path, lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """What stands in these lines of a file, each of them JSON; one that is damaged is left out, which is said once."""
    found = [_parse(line) for line in lines]
    if None in found:
        _say_damaged(file, "the lines that cannot be read are left out")
    return [each for each in found if each is not None]


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


_said: set[Path] = set()


def _say_damaged(file: Path, consequence: str) -> None:
    if file not in _said:
        _said.add(file)
        log.warning("%s is damaged: %s", file, consequence)


def sha256(file: Path) -> str:
    """Of the file's content, in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
