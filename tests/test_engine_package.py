"""The engine replaced by a later version, and as a wheel in place of the folder: the project behaves the same.

The wheel with Poetry and uv: tests/test_managers.py. Everything that `make upgrade` refuses: tests/engine.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import PROJECT, ROOT, Bake, build_engine, link_environment, run, take_engine_as_package
from loopback import serve

PACKAGE = ROOT / "packaging"


def test_what_the_package_needs_is_what_the_project_needs_for_it() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # Jinja adds what belongs to the chosen remote of DVC, and the range of the chosen build of PyTorch
    wanted = {re.sub(r"\{\{.*?\}\}", "", requirement) for requirement in project["dependencies"]}
    assert {re.sub("^torch>.*", "torch", requirement) for requirement in package["dependencies"]} <= wanted
    assert package["requires-python"] == project["requires-python"]


@pytest.fixture
def later(template: Path, tmp_path: Path) -> Path:
    """The template with the next version of the engine."""
    folder = tmp_path / "template"
    shutil.copytree(template, folder)
    shutil.copytree(PACKAGE, folder / PACKAGE.name)
    engine = folder / PROJECT.name / "src/runengine"
    (engine / "VERSION").write_text("0.2.0\n", encoding="utf-8")
    with (engine / "CHANGELOG.md").open("a", encoding="utf-8") as changelog:
        changelog.write("\n## 0.2.0\n\nNothing but this sentence.\n")
    command = ("-m", "runengine", "engine", "--write-manifest")
    run(sys.executable, *command, cwd=folder / PROJECT.name, env={**os.environ, "PYTHONPATH": "src"})
    return folder


@pytest.mark.slow
def test_a_project_takes_a_later_engine_and_then_the_same_as_a_package(
    later: Path, bake: Bake, demo: tuple[Path, str], env: dict[str, str], tmp_path: Path
) -> None:
    settings = tomllib.loads((demo[0] / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ml-template"]
    project = bake(env_manager="venv", cuda="cpu", python_version=settings["python"]).path
    link_environment(demo[0], project)
    python = project / ".venv/bin/python"
    printed = run("make", "upgrade", f"FROM={later}", "ARGS=tests/test_data.py", cwd=project, env=env).output
    assert printed.startswith("engine 0.1.0 -> 0.2.0\n\n## 0.2.0\n\nNothing but this sentence.\n\n")
    assert re.search(r"\nRun: make test\n(.*\n)*=+ \d+ passed", printed), printed
    assert run("make", "check", cwd=project, env=env).output.startswith("engine 0.2.0, unchanged\n")

    take_engine_as_package(project)
    wheel = build_engine(later, tmp_path / "index/runengine")
    with serve(tmp_path / "index") as address:
        # the index has nothing else: what the engine needs is installed already
        pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--index-url", address)
        run(python, *pip, "runengine==0.2.0", cwd=project, env=env)
    said = run(python, "-m", "runengine", "engine", cwd=project, env=env).output
    assert said == "engine 0.2.0, unchanged\n"
    used = "import runengine; print(runengine.__file__)"
    assert run(python, "-c", used, cwd=project, env=env).output.startswith(f"{project / '.venv'}/")
    assert re.search(r"= \d+ passed(, \d+ skipped)? in ", run("make", "test", cwd=project, env=env).output)
    printed = run("make", "data", "train", "evaluate", "ARGS=experiment=smoke", cwd=project, env=env).output
    assert "test accuracy" in printed
    (starts,) = project.glob("runs/smoke/*/starts.jsonl")
    assert '"engine": "0.2.0"' in starts.read_text(encoding="utf-8")
    sweep = "ARGS=-m tracking=off experiment=smoke optimizer.lr=0.01,0.003"
    run("make", "train", sweep, cwd=project, env=env)

    refused = run("make", "upgrade", f"FROM={wheel}", cwd=project, env=env, expect=2).output
    assert refused.startswith(
        "error: this project has no src/runengine: its engine is an installed package. Name the version that you want "
        "in pyproject.toml, then run: make setup\n"
    )
