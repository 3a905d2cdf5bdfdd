"""A project may be moved, and its copy runs its own code: the environment names the folder that it lies in.

    python -m runengine settle    # `make setup` does it at its end

An editable install notes by an absolute path where the code is, and so do the programs in `.venv/bin`.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import tomllib
from pathlib import Path

from . import project
from .files import atomic_file

SHEBANG = re.compile(rb"#!(/.+)/bin/python[\d.]*\n")


def settle(root: Path, environment: Path, packages: Path) -> None:
    """Import the code that lies next to the environment, and make its programs start with its own Python.

    Args:
        root: of the project.
        environment: its own, the folder with `bin/`.
        packages: `site-packages` of the environment.
    """
    name = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"].replace("-", "_")
    for installed in (packages / f"_editable_impl_{name}.pth", packages / f"{name}.pth"):  # hatchling's, Poetry's
        if installed.is_file():  # taken from `packages` on
            _write(installed, f"{os.path.relpath(root / 'src', packages)}\n".encode())
    programs = [file for file in (environment / "bin").glob("*") if file.is_file() and not file.is_symlink()]
    contents = {file: file.read_bytes() for file in programs}
    now = os.fsencode(environment)
    others = {found[1] for content in contents.values() if (found := SHEBANG.match(content))} - {now}
    for before in others:
        if not before.endswith(b"/" + os.fsencode(environment.name)):
            continue  # whoever put this program here wants another Python
        for file, content in contents.items():
            if before in content:
                _write(file, content.replace(before, now))


def _write(file: Path, content: bytes) -> None:
    mode = file.stat().st_mode
    with atomic_file(file) as new:
        new.write_bytes(content)
        new.chmod(mode)


def main() -> None:
    environment = Path(sys.prefix)
    if environment.parent == project.root() and os.name != "nt":
        settle(project.root(), environment, Path(sysconfig.get_path("purelib")))
