"""A project with a name of many languages, set up in two tries, works."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run

pytestmark = pytest.mark.slow


def test_a_name_of_many_languages_works_and_setup_survives_being_killed(template: Path, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "VIRTUAL_ENV"))}
    env = {**kept, "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    command = f"{sys.executable} -m cookiecutter {template} --no-input -o {tmp_path}"
    run(*command.split(), "project_name=L'Été d'O'Brien: 日本 \"x\"", cwd=tmp_path, env=env)
    project = tmp_path / "a folder with spaces"
    shutil.move(tmp_path / "l-ete-d-o-brien-x", project)

    process = subprocess.Popen(
        ["make", "setup"],
        cwd=project,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("== Installing the project"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    printed = run("make", "train", cwd=project, env=env, expect=2).output
    assert printed.startswith("error: the environment is not there yet. Run: make setup\n")

    run("make", "setup", "data", cwd=project, env=env)
    run("make", "train", "ARGS=experiment=smoke", cwd=project, env=env)
    printed = run("make", "test", cwd=project, env=env).output
    assert re.search(r"= \d+ passed(, \d+ skipped)? in ", printed), printed[-3000:]
