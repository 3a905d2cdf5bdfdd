"""Is the engine as it was released? `MANIFEST` holds the SHA-256 of each of its files.

    python -m runengine engine                     # engine 0.1.0, unchanged
    python -m runengine engine --write-manifest    # for the maintainers of the template, after each change

Only Python's standard library is imported: this module must work in an engine whose other files are missing.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent
NAME = FOLDER.name
PLUGIN = f"../hydra_plugins/{NAME}.py"  # Hydra accepts plugins from that folder only
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
HOW_TO_UPGRADE = "make upgrade FROM=<folder, git address or wheel>"


class Edits(NamedTuple):
    """Names of files, relative to the engine's folder."""

    changed: list[str]
    missing: list[str]
    added: list[str]

    def __bool__(self) -> bool:
        return any(self)

    def __str__(self) -> str:
        missing = [f"{name} (missing)" for name in self.missing]
        return ", ".join([*self.changed, *missing, *(f"{name} (added)" for name in self.added)])


def here() -> Path:
    """The engine of the project in which the command was typed; outside a project the engine that was imported."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "src" / NAME).is_dir():
            return folder / "src" / NAME
    return FOLDER


def version(folder: Path = FOLDER) -> str:
    try:
        text = (folder / "VERSION").read_text(encoding="utf-8").strip()
    except OSError:
        return "unknown"
    return text if re.fullmatch(r"\w[\w.+-]*", text) else "unknown"


def write(folder: Path) -> None:
    """Write `MANIFEST` for the present files."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / "MANIFEST").write_bytes("".join(lines).encode())  # bytes: with LF line ends on Windows, too


def read(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by its name; empty if `MANIFEST` is missing or damaged."""
    try:
        found = [LINE.fullmatch(line) for line in (folder / "MANIFEST").read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return {}
    return {match[2]: match[1] for match in found if match} if all(found) else {}


def compare(folder: Path = FOLDER) -> Edits:
    """What differs from `MANIFEST`. Without it all files count as added, because nothing is known about them."""
    then, now = read(folder), _files(folder)
    if not then:
        return Edits([], ["MANIFEST"], now)
    return Edits(
        [name for name in now if name in then and _sha256(folder / name) != then[name]],
        [name for name in sorted(then) if name not in now],
        [name for name in now if name not in then],
    )


@functools.cache
def state() -> str:
    """The state of the imported engine, as runs record it: `0.1.0`, or `0.1.0, edited`."""
    return f"{version()}, edited" if compare() else version()


def describe(folder: Path = FOLDER) -> str:
    """`engine 0.1.0, unchanged`, or the names of the files that were edited."""
    edits = compare(folder)
    if edits.missing == ["MANIFEST"]:
        return f"engine {version(folder)}, but MANIFEST is missing or damaged, so edits cannot be found"
    return f"engine {version(folder)}, " + (f"edited: {edits}" if edits else "unchanged")


def incomplete() -> str | None:
    """The message for an engine with missing files; None if all are there."""
    files = [(FOLDER / name).resolve() for name in read(FOLDER)]
    absent = [os.path.relpath(file) for file in files if not file.is_file()]
    if not absent:
        return None
    more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
    return (
        f"the engine lacks {', '.join(absent[:3])}{more}. Restore the missing files (git restore, git checkout), or "
        f"replace the engine: {HOW_TO_UPGRADE}"
    )


def exit_if_incomplete() -> None:
    """Call this when an import has failed."""
    if sentence := incomplete():
        sys.exit(f"error: {sentence}")


def _files(folder: Path) -> list[str]:
    """All files except MANIFEST, caches, and the hidden files of editors and systems."""
    parts = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    names = [part.as_posix() for part in parts if not any(name.startswith((".", "__pycache__")) for name in part.parts)]
    plugin = [PLUGIN] if (folder / PLUGIN).is_file() else []
    return sorted({*names, *plugin} - {"MANIFEST"})


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {NAME} engine", description="Is the engine as it was released?")
    parser.add_argument("--write-manifest", action="store_true", help="for the maintainers of the template")
    if parser.parse_args().write_manifest:
        write(here())
    print(describe(here()))
