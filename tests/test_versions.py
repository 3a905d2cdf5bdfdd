"""Other Pythons generate what this one does; a cookiecutter that is too old says what helps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXTENSION, ROOT, run

pytestmark = pytest.mark.slow

OTHERS = sorted({"3.11", "3.12", "3.13"} - {"{}.{}".format(*sys.version_info)})
# what looks at the machine and at answers; each single choice by the newest: it is Jinja that fills in the files
WHAT = {
    version: ["answers", "machine", "terminal", *(["generation"] if version == OTHERS[-1] else [])]
    for version in OTHERS
}


def python_of(version: str) -> str | None:
    """This Python: pyenv's if it has one (its stub runs only what is chosen), else the one on PATH."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [str(path) for path in sorted(root.glob(f"{version}.*/bin/python"))]
    found += [path for path in [shutil.which(f"python{version}")] if path]
    return next((path for path in found if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0), None)


@pytest.mark.parametrize("version", OTHERS)
def test_another_python_generates(version: str, tmp_path: Path) -> None:
    python = python_of(version)
    if python is None:
        pytest.skip(f"Python {version} is not here")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).output.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "copy" / name)
    run("git", "init", "-q", cwd=tmp_path / "copy")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    files = " ".join(f"tests/test_{name}.py" for name in WHAT[version])
    command = ("make", "test-fast", f"PYTHON={python}", f"ARGS={files} -k 'not every_pair'")
    printed = run(*command, cwd=tmp_path / "copy", env={**env, "TMPDIR": "/tmp"}).output  # noqa: S108
    assert re.search(r"= \d+ passed.* in ", printed), printed[-2000:]


def test_a_cookiecutter_that_is_too_old_says_what_helps(template: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "old", cwd=tmp_path)
    old = tmp_path / "old/bin"
    run(old / "pip", "install", "--quiet", "cookiecutter==1.7.3", "setuptools<81", cwd=tmp_path)
    printed = run(old / "cookiecutter", template, "--no-input", cwd=tmp_path, expect=1).output
    assert printed.splitlines()[-1] == f"Unable to load extension: No module named '{Path(EXTENSION).stem}'"
