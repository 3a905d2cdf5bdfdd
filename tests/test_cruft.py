"""`cruft update` brings a later version of the template into a project that its owner has changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CHOICES, ENGINE, PROJECT, Answer, Bake, Project, run

CONCRETE = {name: [choice for choice in choices if choice != "auto"] for name, choices in CHOICES.items()}
START = {name: choices[0] for name, choices in CONCRETE.items()}

Cruft = Callable[..., Answer]


@pytest.fixture(autouse=True)
def somebody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config_file: Path, bare_machine: Path) -> None:
    """A person who may commit, with a home of their own; cruft reads cookiecutter's settings there."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COOKIECUTTER_CONFIG", str(config_file))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@example.com")


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    """The template under version control, at its first commit."""
    folder = tmp_path / "ml-template"
    shutil.copytree(template, folder)
    commit(folder, start=True)
    return folder


@pytest.fixture
def cruft(tmp_path: Path) -> Cruft:
    def call(*arguments: str | Path, cwd: Path = tmp_path, expect: int | None = 0) -> Answer:
        return run(sys.executable, "-m", "cruft", *arguments, cwd=cwd, expect=expect)

    return call


@pytest.fixture
def create(repository: Path, tmp_path: Path, cruft: Cruft) -> Callable[..., Project]:
    """A project made by `cruft create` and committed by its owner."""

    def generate(**answers: str) -> Project:
        output = tmp_path / "projects"
        output.mkdir()
        cruft("create", repository, "--no-input", "--extra-context", json.dumps(answers), "--output-dir", output)
        (folder,) = output.iterdir()
        commit(folder, start=True)
        return Project(folder)

    return generate


def commit(folder: Path, start: bool = False) -> None:
    if start:
        run("git", "init", "--quiet", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("git", "commit", "--quiet", "--message", "as it is", cwd=folder)


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def content(project: Project) -> dict[str, bytes]:
    """The files of a project but for the records of git and cruft."""
    files = (name for name in project.files() if not name.startswith(".git/") and name != ".cruft.json")
    return {name: (project.path / name).read_bytes() for name in files}


def runs(project: Project, name: str) -> bool:
    """Whether a file can be run."""
    return os.access(project.path / name, os.X_OK)


def changed(diff: str) -> set[str]:
    """The files that a diff of cruft is about."""
    return set(re.findall(r"^diff --git upstream-template-old/(\S+) ", diff, re.MULTILINE))


def test_an_untouched_project_has_no_diff_and_its_answers_are_concrete(
    create: Callable[..., Project], cruft: Cruft
) -> None:
    project = create()
    cruft("diff", "--exit-code", cwd=project.path)
    cruft("check", cwd=project.path)
    answers = json.loads(project.text(".cruft.json"))["context"]["cookiecutter"]
    assert {name: answers[name] in choices for name, choices in CONCRETE.items()} == dict.fromkeys(CONCRETE, True)


def test_an_update_brings_what_changed_and_keeps_what_its_owner_edited(
    repository: Path, create: Callable[..., Project], cruft: Cruft
) -> None:
    project = create(**START)
    append(project.path / "README.md", "\n## Ours\n\nNotes of the owner.\n")
    append(project.path / "src/my_project/model.py", "\n\nWIDTH = 64\n")
    (project.path / "src/my_project/ours.py").write_text("OURS = True\n", encoding="utf-8")
    (project.path / "tests/test_model.py").unlink()
    commit(project.path)

    source = repository / PROJECT.name
    readme = (source / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"^## .*\n", r"\g<0>\nA line of the second version.\n", readme, count=1, flags=re.MULTILINE)
    (source / "README.md").write_text(readme, encoding="utf-8")
    (source / "src/ml_project/second.py").write_text('NAME = "ml_project"\n', encoding="utf-8")
    append(source / "tests/test_model.py", "\n# the second version of what the owner deleted\n")
    commit(repository)

    assert "out of date" in cruft("check", cwd=project.path, expect=1).output
    cruft("update", "--skip-apply-ask", cwd=project.path)

    assert "A line of the second version.\n" in project.text("README.md")
    assert project.text("README.md").endswith("\n## Ours\n\nNotes of the owner.\n")
    assert project.text("src/my_project/model.py").endswith("\n\nWIDTH = 64\n")
    assert project.text("src/my_project/ours.py") == "OURS = True\n"
    assert project.text("src/my_project/second.py") == 'NAME = "my_project"\n'
    assert not (project.path / "tests/test_model.py").exists()
    assert [name for name in project.files() if name.endswith((".rej", ".orig"))] == []

    assert cruft("check", cwd=project.path).returncode == 0
    assert changed(cruft("diff", cwd=project.path).output) == {"README.md", "src/my_project/model.py"}
    status = run("git", "status", "--porcelain", cwd=project.path).output
    assert {line[3:] for line in status.splitlines()} == {".cruft.json", "README.md", "src/my_project/second.py"}


def test_an_update_of_the_engine_has_no_conflict_where_all_else_was_edited(
    repository: Path, create: Callable[..., Project], cruft: Cruft
) -> None:
    project = create(**START)
    owned = {name for name in content(project) if not name.startswith(ENGINE)}
    for name in owned:
        append(project.path / name, "\n# ours\n")
    commit(project.path)
    before = content(project)

    source = repository / PROJECT.name
    engine = source / "src/runengine"
    for file in (*engine.rglob("*.py"), *engine.rglob("*.yaml"), source / "src/hydra_plugins/runengine.py"):
        text = file.read_text(encoding="utf-8")
        file.write_text(f"# the second version\n{text}# its end\n", encoding="utf-8")
    (engine / "second.py").write_text("NEW = True\n", encoding="utf-8")
    (engine / "model_card.py").unlink()
    (engine / "VERSION").write_text("0.2.0\n", encoding="utf-8")
    manifest = (sys.executable, "-m", "runengine", "engine")
    run(*manifest, "--write-manifest", cwd=source, env={**os.environ, "PYTHONPATH": "src"})
    commit(repository)
    cruft("update", "--skip-apply-ask", cwd=project.path)

    after = content(project)
    assert {name for name in after if not name.startswith(ENGINE)} == owned
    assert all(after[name] == before[name] for name in owned)
    for name in (name for name in after if name.startswith(ENGINE)):
        assert after[name] == (source / name).read_bytes()
    said = run(*manifest, cwd=project.path, env={**os.environ, "PYTHONPATH": "src"}).output
    assert said == "engine 0.2.0, unchanged\n"


def test_an_update_runs_the_new_versions_code(repository: Path, create: Callable[..., Project], cruft: Cruft) -> None:
    # cruft renders both versions in one process: code that is imported would stay the old version's
    project = create(**START, description="what it is about")
    append(repository / "ml_template/answers.py", '\nFILTERS["md"] = lambda text: f"new {md(text)}"\n')
    commit(repository)
    before = content(project)
    cruft("update", "--skip-apply-ask", cwd=project.path)
    assert "\nnew what it is about\n" in project.text("README.md")
    assert {name for name, text in content(project).items() if text != before[name]} == {"README.md"}
    cruft("diff", "--exit-code", cwd=project.path)


@pytest.mark.parametrize(("question", "answer"), [
    pytest.param(name, choice, marks=() if choice == choices[-1] else pytest.mark.slow)
    for name, choices in CONCRETE.items() for choice in choices[1:]
])  # fmt: skip
def test_another_answer_gives_what_it_would_have_given_at_first(
    create: Callable[..., Project], cruft: Cruft, bake: Bake, question: str, answer: str
) -> None:
    project = create(**START)
    update = ("update", "--skip-apply-ask", "--variables-to-update", json.dumps({question: answer}))
    cruft(*update, cwd=project.path)
    assert json.loads(project.text(".cruft.json"))["context"]["cookiecutter"][question] == answer
    wanted = bake(**{**START, question: answer})
    assert content(project) == content(wanted)
    assert {name: runs(project, name) for name in wanted.files()} == {
        name: runs(wanted, name) for name in wanted.files()
    }


def test_a_switch_to_what_conda_forge_lacks_is_refused_and_the_command_that_is_named_does_it(
    create: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = create(**START | {"env_manager": "conda"})
    before = content(project)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
    printed = run("make", "switch", "CUDA=rocm7.2", cwd=project.path, expect=2).output
    sentence = printed.splitlines()[0]
    assert sentence.startswith("error: cuda=rocm7.2 needs env_manager=poetry, uv or venv, got conda: conda-forge has")
    assert "Traceback" not in printed
    assert content(project) == before
    cuda, manager = re.findall(r"make switch CUDA=(\S+) ENV=(\w+)\.", sentence)[0]
    run("sh", "scripts/switch.sh", cuda, manager, cwd=project.path)  # make would set it up, too
    asked = tomllib.loads(project.text("pyproject.toml"))["tool"]["ml-template"]
    assert (asked["cuda"], asked["env_manager"]) == ("rocm7.2", "venv")


def test_another_license_changes_the_license_and_its_mentions(create: Callable[..., Project], cruft: Cruft) -> None:
    project = create(license="MIT")
    before = content(project)
    cruft("update", "--skip-apply-ask", "--variables-to-update", '{"license": "Apache-2.0"}', cwd=project.path)
    after = content(project)
    assert after.keys() == before.keys()
    owned = [name for name in after if name.endswith(".py") and not name.startswith(ENGINE)]
    changed = {name for name in after if after[name] != before[name] and name not in owned}
    assert changed == {"LICENSE", "README.md", "pyproject.toml"}
    header = b"# SPDX-License-Identifier: Apache-2.0\n"
    assert all(after[name] == header + before[name] for name in owned)
