"""What a wheelhouse cannot hold, or cannot be used for, is one sentence. That it works: tests/test_managers.py."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Bake, Project, run

PLATFORM = f"{sys.platform}-{platform.machine()}"
RUNNING = "{}.{}".format(*sys.version_info)


def wheelhouse(folder: Path, *, python: str = RUNNING, machine: str = PLATFORM) -> Path:
    """One without packages."""
    folder.mkdir()
    listed = folder / "requirements.txt"
    listed.write_text(f"# python {python}\n# platform {machine}\n", encoding="utf-8")
    sums = f"{hashlib.sha256(listed.read_bytes()).hexdigest()}  {listed.name}\n"
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    return folder


def said(project: Project, task: str, python: str | Path = sys.executable) -> str:
    """The last line of a refusal."""
    answer = run(python, "scripts/wheelhouse.py", task, "wheelhouse", cwd=project.path, expect=1)
    assert not (project.path / ".venv").exists()
    assert not (project.path / ".wheelhouse-new").exists()
    return answer.output.splitlines()[-1]


@pytest.mark.parametrize("task", ["fill", "setup"])
def test_conda_s_packages_are_no_wheels(bake: Bake, task: str) -> None:
    assert said(bake(env_manager="conda"), task) == (
        "error: conda's packages are no wheels, so a wheelhouse cannot hold them. An image holds them, too: make image."
    )


def test_a_folder_that_is_none_is_said(bake: Bake) -> None:
    project = bake(env_manager="uv")
    again = "Get it again (dvc pull --force wheelhouse), or make it again with a network: make setup wheelhouse."
    assert said(project, "setup") == (
        f"error: {project.path / 'wheelhouse'} is no wheelhouse: it has no SHA256SUMS. {again}"
    )


def test_wheels_of_another_machine_are_refused(bake: Bake) -> None:
    project = bake(env_manager="poetry")
    wheelhouse(project.path / "wheelhouse", machine="win32-AMD64")
    assert said(project, "setup") == (
        f"error: these wheels are for win32-AMD64, and this machine is {PLATFORM}. With a network: make setup."
    )


def test_wheels_of_another_python_want_that_python(bake: Bake, tmp_path: Path) -> None:
    project = bake(env_manager="venv")
    wheelhouse(project.path / "wheelhouse", python="3.99")
    assert said(project, "setup") == (
        "error: these wheels are for Python 3.99, which was not found. Install it, or add BASE_PYTHON=/path/to/python."
    )
    named = tmp_path / "python"  # says that it is one, and makes nothing
    named.write_text(f'#!/bin/sh\ncase "$*" in *version_info*) echo 3.99 {named} ;; *) exit 1 ;; esac\n')
    named.chmod(0o755)
    command = ["make", "setup", "WHEELHOUSE=wheelhouse"]
    none = tmp_path / "none"
    none.mkdir()
    for program in ("make", "bash", "sh", "dirname"):
        (none / program).symlink_to(str(shutil.which(program)))
    nothing = run(*command, cwd=project.path, env={**os.environ, "PATH": str(none)}, expect=2)
    assert "error: no Python was found. Install the one that the wheels are for, or name it: " in nothing.output
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    answer = run(*command, f"BASE_PYTHON={named}", cwd=project.path, env=here, expect=2)
    assert f"== Making .venv with Python 3.99 ({named})" in answer.output
    assert f"error: {named} cannot make virtual environments." in answer.output


def test_a_package_from_a_folder_is_named(bake: Bake, tmp_path: Path) -> None:
    project = bake(env_manager="venv")
    here = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", here], check=True)
    info = next(here.glob("lib/python*/site-packages")) / "own_tool-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own_tool\nVersion: 1.0\n", encoding="utf-8")
    (info / "direct_url.json").write_text('{"url": "file:///home/me/tool", "dir_info": {}}', encoding="utf-8")
    assert said(project, "fill", here / "bin/python") == (
        "error: own_tool comes from a folder, file:///home/me/tool: it has no wheel. Install it from Git or an index."
    )
