"""The template where it lies: real Python, no Jinja in it, and nothing that does not belong."""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import CHOICES, PROJECT, QUESTIONS, ROOT, run


def project_files() -> list[Path]:
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", ".", cwd=PROJECT).output
    return sorted(PROJECT / name for name in listed.split("\0") if name)


def test_no_python_of_the_project_holds_jinja() -> None:
    files = [file for file in project_files() if file.suffix == ".py"]
    assert len(files) > 15
    for file in files:
        text = file.read_text(encoding="utf-8")
        ast.parse(text)
        assert "{{" not in text, file
        assert "{%" not in text, file


def test_every_file_is_what_its_suffix_says_before_rendering() -> None:
    for file in project_files():
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".toml":
            tomllib.loads(text)
        elif file.suffix == ".yaml":
            yaml.safe_load(text)


@pytest.mark.parametrize(
    "tool", [["check", "--extend-select", "E501", "--ignore", "RUF200"], ["format", "--check"]], ids=["check", "format"]
)
def test_the_project_is_ruff_clean_where_it_lies(tool: list[str]) -> None:
    # RUF200: the version of torch in pyproject.toml is a Jinja value until it is rendered
    run(sys.executable, "-m", "ruff", *tool, "--no-cache", ".", cwd=PROJECT)


def test_the_template_itself_is_clean(tmp_path: Path) -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".", cwd=ROOT)
    run(sys.executable, "-m", "ruff", "format", "--check", "--no-cache", ".", cwd=ROOT)
    run(sys.executable, "-m", "mypy", "--cache-dir", tmp_path, cwd=ROOT)


def test_every_question_has_a_prompt_and_every_choice_a_reason_to_take_it() -> None:
    prompts = QUESTIONS["__prompts__"]
    for name in (name for name in QUESTIONS if not name.startswith("_")):
        assert name in prompts
        if name in CHOICES and name != "python_version":
            assert set(CHOICES[name]) <= set(prompts[name])


def test_the_table_has_a_row_for_every_build() -> None:
    assert list(QUESTIONS["_builds"]) == [build for build in CHOICES["cuda"] if build != "auto"]


def test_nothing_else_lies_among_the_hooks() -> None:
    # cookiecutter runs anything called post_gen_project.*, a backup copy included
    names = sorted(file.name for file in (ROOT / "hooks").iterdir())
    assert names == ["post_gen_project.py", "pre_gen_project.py", "pre_prompt.py"]


def test_hooks_import_the_standard_library_only_and_print_ascii() -> None:
    for file in (ROOT / "hooks").iterdir():
        text = file.read_text(encoding="utf-8")
        assert text.isascii()
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.split(".")[0] in sys.stdlib_module_names for name in names), file


def test_readmes_are_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def test_one_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_questions_are_json_that_a_person_can_read() -> None:
    assert json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))["project_name"] == "My Project"
