"""Every choice, alone and with every other, gives the same clean project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import CHOICES, QUESTIONS, Bake, Project, combinations, run

FILES = """\
.dvc/.gitignore .dvc/config .dvcignore .gitignore LICENSE Makefile README.md dvc.yaml environment.mk pyproject.toml
scripts/seeds.py scripts/setup_env.py
src/PACKAGE/__init__.py src/PACKAGE/callbacks.py src/PACKAGE/config.py src/PACKAGE/data.py src/PACKAGE/errors.py
src/PACKAGE/evaluate.py src/PACKAGE/model.py src/PACKAGE/plots.py src/PACKAGE/predict.py src/PACKAGE/prepare.py
src/PACKAGE/run.py src/PACKAGE/task.py src/PACKAGE/train.py
src/PACKAGE/conf/data/digits.yaml src/PACKAGE/conf/debug/anomaly.yaml src/PACKAGE/conf/debug/overfit.yaml
src/PACKAGE/conf/experiment/smoke.yaml src/PACKAGE/conf/model/cnn.yaml src/PACKAGE/conf/model/mlp.yaml
src/PACKAGE/conf/optim/adamw.yaml src/PACKAGE/conf/optim/sgd.yaml src/PACKAGE/conf/prepare.yaml
src/PACKAGE/conf/tracking/mlflow.yaml src/PACKAGE/conf/tracking/off.yaml src/PACKAGE/conf/train.yaml
src/PACKAGE/conf/trainer/auto.yaml src/PACKAGE/conf/trainer/cpu.yaml
tests/conftest.py tests/test_config.py tests/test_data.py tests/test_model.py tests/test_run.py
"""


def assert_clean(project: Project, package: str = "my_project") -> None:
    """Exactly the files it should have, each of the kind its name says, with nothing of the template left."""
    assert project.files() == sorted(name.replace("PACKAGE", package) for name in FILES.split())
    for name in project.files():
        text = project.text(name)
        assert "{{" not in text, name
        assert "{%" not in text, name
        assert "cookiecutter" not in text, name
        if "ml_project" not in package:
            assert "ml_project" not in text, name
        if name.endswith(".toml"):
            tomllib.loads(text)
        elif name.endswith((".yaml", ".yml")):
            yaml.safe_load(text)
        elif name.endswith(".json"):
            json.loads(text)
    for tool in (["check"], ["format", "--check"]):
        run(sys.executable, "-m", "ruff", *tool, "--no-cache", ".", cwd=project.path)


@pytest.mark.parametrize("answers", list(combinations()), ids=lambda answers: "-".join(answers.values()))
def test_every_choice_and_every_pair_gives_a_clean_project(bake: Bake, answers: dict[str, str]) -> None:
    project = bake(**answers)
    assert_clean(project)
    settings = tomllib.loads(project.text("pyproject.toml"))
    chosen = settings["tool"]["ml-template"]
    for question in ("python_version", "env_manager", "cuda"):
        got = chosen["python" if question == "python_version" else question]
        wanted = answers.get(question, "auto")
        assert got in CHOICES[question]
        assert got != "auto"
        assert wanted in ("auto", got)
    build = QUESTIONS["_builds"][chosen["cuda"]]
    assert chosen["torch"] == build["tested"]
    assert chosen["torch_index"] == f"{QUESTIONS['pytorch_index']}/{build['index']}"
    assert f"torch{build['torch']}" in settings["project"]["dependencies"]


@pytest.mark.parametrize("package", ["a", "my_ml_project", "x" * 63])
def test_the_length_of_the_package_name_does_not_matter(bake: Bake, package: str) -> None:
    assert_clean(bake(package_name=package), package)


@pytest.mark.parametrize(("license_", "line"), [
    ("MIT", "Copyright (c) Zoë ml_project"),
    ("BSD-3-Clause", "Copyright (c) Zoë ml_project"),
    ("Apache-2.0", "Apache License"),
    ("Proprietary", "Copyright (c) Zoë ml_project. All rights reserved."),
])  # fmt: skip
def test_the_license_is_the_one_chosen(bake: Bake, license_: str, line: str) -> None:
    project = bake(license=license_, author_name="Zoë ml_project")
    assert line in (text.strip() for text in project.text("LICENSE").splitlines())
    spdx = tomllib.loads(project.text("pyproject.toml"))["project"]["license"]
    assert spdx == ("LicenseRef-Proprietary" if license_ == "Proprietary" else license_)


def test_the_same_answers_give_the_same_bytes(bake: Bake) -> None:
    first = bake()
    content = {name: (first.path / name).read_bytes() for name in first.files()}
    shutil.rmtree(first.path)
    second = bake()
    assert {name: (second.path / name).read_bytes() for name in second.files()} == content


def test_generation_needs_no_network(template: Path, tmp_path: Path, config_file: Path) -> None:
    if sys.platform != "linux" or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode != 0:
        pytest.skip("this system cannot take the network away from a process (unshare -rn)")
    command = f"{sys.executable} -m cookiecutter {template} --no-input --config-file {config_file} -o {tmp_path}"
    answer = run("unshare", "-rn", *command.split(), cwd=tmp_path)
    assert "my-project is ready:" in answer.output


def test_the_last_words_say_what_was_chosen_why_and_what_to_type(
    template: Path, tmp_path: Path, config_file: Path
) -> None:
    command = f"{sys.executable} -m cookiecutter {template} --no-input --config-file {config_file} -o {tmp_path}"
    answer = run(*command.split(), "license=MIT", "python_version=3.12", cwd=tmp_path)
    assert answer.output.isascii()
    assert re.search(r"python_version +3.12 +as you chose\n", answer.output)
    assert re.search(r"env_manager +venv +needs nothing but Python\n", answer.output)
    assert answer.output.endswith("  cd my-project\n  make setup data train evaluate\n\n")
