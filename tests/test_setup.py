"""`make setup` against a PyTorch index on loopback: stub wheels stand for builds that cannot be had here."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Answer, Bake, Project, run
from loopback import serve, write_stub_torch

Setup = Callable[..., Answer]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of an index whose `cpu` is right and whose `cu126` gives a CPU build."""
    write_stub_torch(tmp_path / "index/cpu/torch", "cpu", None)
    write_stub_torch(tmp_path / "index/cu126/torch", "cu126", None)
    write_stub_torch(tmp_path / "index/cu130/torch", "cu130", "13.0")
    (tmp_path / "index/empty").mkdir()
    with serve(tmp_path / "index") as address:
        yield address


@pytest.fixture
def setup(bake: Bake, index: str) -> Setup:
    """Makes .venv in a new project, installs this build from this index, and checks it; pip's own index is empty."""
    project: Project = bake()

    def steps(build: str, torch_index: str | None = None, expect: int = 0, **pip: str) -> Answer:
        settings = project.path / "pyproject.toml"
        settings.write_text(re.sub(r'^cuda = ".*"$', f'cuda = "{build}"', settings.read_text(), flags=re.MULTILINE))
        config = {"cuda": build, "torch": "2.13.0", "torch_index": torch_index or f"{index}/{build}"}
        program = (
            "import sys; sys.path.insert(0, 'scripts'); import setup_env as setup\n"
            f"setup.make_venv('{sys.version_info[0]}.{sys.version_info[1]}')\n"
            f"setup.install_torch({config}, 'torch>=2.13,<2.16')\n"
            "status = setup.subprocess.call([setup.PYTHON, '-m', 'runengine', 'doctor', '--quick'])\n"
            "sys.exit(0 if status == 2 else status)\n"  # a stub cannot multiply: that check is unknown
        )
        env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        env |= {"PIP_INDEX_URL": f"{index}/empty", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", **pip}
        env["PYTHONPATH"] = str(project.path / "src")
        return run(sys.executable, "-c", program, cwd=project.path, env=env, expect=expect)

    return steps


@pytest.mark.slow
def test_torch_comes_from_pytorchs_index_where_pip_has_none(setup: Setup, index: str, tmp_path: Path) -> None:
    kept = {"PYTHONDONTWRITEBYTECODE": "1"}  # the doctor imports it
    printed = setup("cu130", **kept).output
    installed = tmp_path / "out/my-project/.venv"
    assert not list(installed.glob("lib/*/site-packages/torch/**/*.pyc"))  # what is imported is compiled then
    assert f"== pip's own indexes do not have it, trying {index}/cu130\n" in printed
    assert re.search(r"\nPyTorch +ok +PyTorch 2.13.0\+cu130, build cu130, as asked for\n", printed)
    assert re.search(r"\nenvironment +ok +\.venv, made by venv\n", printed)
    assert re.search(
        r"\nPyTorch +ok +PyTorch 2.13.0\+cpu, build cpu, as asked for\n", setup("cpu", **kept, LOCKED="1").output
    )
    assert list(installed.glob("lib/*/site-packages/torch/**/*.pyc"))  # in an image nobody could do it later


def test_another_build_than_the_one_asked_for_is_refused(setup: Setup) -> None:
    printed = setup("cu126", expect=1).output
    assert re.search(
        r"PyTorch +fail +PyTorch 2.13.0\+cu126 is the build cpu, but pyproject.toml asks for cu126\n"
        r" +why: it may not run on the GPUs that the project is for\n +do: make clean-env setup\n",
        printed,
    )
    assert "\nFailed: PyTorch. " in printed


def test_an_index_that_cannot_be_reached_gets_one_sentence(setup: Setup) -> None:
    nobody = "http://127.0.0.1:9/cpu"
    assert setup("cpu", torch_index=nobody, expect=1).output.endswith(
        f"error: torch==2.13.0+cpu is neither in pip's own indexes nor to be had from {nobody}. Check the network "
        "(or set torch_index in pyproject.toml to a mirror), then run `make setup` again.\n"
    )


@pytest.mark.slow
def test_a_clusters_wheelhouse_gives_its_own_build(setup: Setup, tmp_path: Path) -> None:
    write_stub_torch(tmp_path / "wheelhouse", "computecanada", "13.0")
    cluster = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheelhouse")}
    assert "PyTorch 2.13.0+computecanada, build cu130, as asked for\n" in setup("cu130", **cluster).output
    refused = setup("cu126", expect=1, **cluster).output
    assert "PyTorch 2.13.0+computecanada is the build cu130, but pyproject.toml asks for cu126\n" in refused
    nothing = {**cluster, "PIP_FIND_LINKS": str(tmp_path / "empty")}
    shutil.rmtree(tmp_path / "out/my-project/.venv")
    assert setup("cu130", expect=1, **nothing).output.endswith(
        "error: pip is configured to use no index, and its wheelhouse has no torch>=2.13,<2.16. "
        "Ask for it, or unset PIP_NO_INDEX.\n"
    )


def test_a_python_that_cannot_make_environments_gets_one_sentence(bake: Bake, tmp_path: Path) -> None:
    broken = tmp_path / "python"  # as on Debian without python3-venv
    broken.write_text(f'#!/bin/sh\nif [ "$1" = -m ]; then exit 1; fi\nexec {sys.executable} "$@"\n')
    broken.chmod(0o755)
    program = f"import sys; sys.path.insert(0, 'scripts'); import setup_env as s; sys.executable = {str(broken)!r}\n"
    project = bake()
    answer = run(sys.executable, "-c", program + "s.make_venv('3.11')", cwd=project.path, expect=1)
    found = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert answer.output.endswith(
        f"error: {broken} cannot make virtual environments. On Debian and Ubuntu: sudo apt install python{found}-venv, "
        "then run `make setup` again.\n"
    )
    assert not (project.path / ".venv").exists()
