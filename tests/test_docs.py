"""The documentation of a generated project: it builds without a warning, and a person sees what it should show.

SCREENSHOTS=docs/images .venv/bin/python -m pytest tests/test_docs.py      # renews the pictures there
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, Bake, look, run, without
from loopback import serve

sys.path.append(str(ROOT / "tests/engine"))
from pages import FENCE  # type: ignore[import-not-found]

HOW = {
    "poetry": 'poetry install --extras "dev docs"',
    "conda": '.conda/bin/python -m pip install --editable ".[docs]"',
    "uv": "uv sync --extra dev --extra docs",
    "venv": '.venv/bin/python -m pip install --editable ".[docs]"',
}


@pytest.mark.parametrize("manager", HOW)
def test_without_sphinx_it_says_how_to_get_it_and_installs_nothing(bake: Bake, manager: str) -> None:
    project = bake(env_manager=manager)
    before = project.files()
    said = run("make", "docs", "READY=Makefile", cwd=project.path, expect=2).output  # no Python is on the PATH at all
    sentence = f"error: the documentation is built by Sphinx, which is not installed. Run: {HOW[manager]}\n"
    assert said.startswith(sentence)
    assert project.files() == before


def test_what_the_pages_change_is_there_whatever_the_package_is_called(bake: Bake) -> None:
    """tests/engine/test_docs.py follows the pages with the template's own names; here with the longest."""
    project = bake(package_name="x" * 63)
    num_changes = 0
    for page in (project.path / "docs").glob("*.md"):
        name = ""
        for kind, content, named in FENCE.findall(page.read_text(encoding="utf-8")):
            name = named or name
            if kind == "diff":
                old = [line[1:] for line in content.splitlines() if line[:1] != "+"]
                assert project.text(name).count("".join(f"{line}\n" for line in old)) == 1, content
                num_changes += 1
    assert num_changes > 5


@pytest.fixture(scope="module")
def sphinx(
    demo: tuple[Path, str], python: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The environment of a user who has the project's extra `docs` in addition to the packages of the demo."""
    folder = tmp_path_factory.mktemp("sphinx")
    project = tomllib.loads((demo[0] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--target"]
    run(python, *pip, folder, *project["optional-dependencies"]["docs"], cwd=folder)
    return {**env, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": ""}


def make_docs(project: Path, python: Path, env: dict[str, str], *settings: str, expect: int = 0) -> str:
    programs = os.path.relpath(python.parent, project)
    command = ["make", "--no-print-directory", "docs", f"BIN={programs}", "READY=Makefile", *settings]
    return run(*command, cwd=project, env=env, expect=expect).output


@pytest.mark.slow
def test_the_pages_build_and_a_person_sees_them(
    project: Path, python: Path, env: dict[str, str], sphinx: dict[str, str], browser: Path, tmp_path: Path
) -> None:
    assert f"Run: {HOW['venv']}\n" in make_docs(project, python, env, expect=2)
    copy = tmp_path / "project"
    shutil.copytree(project, copy, ignore=without(project, ".venv", "runs", "mlruns", "mlflow.db"))
    assert make_docs(copy, python, sphinx) == "wrote docs/_build/html/index.html\n"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with serve(copy / "docs/_build/html") as address:
        port = int(address.rpartition(":")[2])
        seen = look(browser, "docs", port, "batch_size", pictures / "docs-start.png")
    assert seen["title"] == "my-project"
    assert "make setup" in seen["start"]
    assert re.search(r"data\.batch_size\s+64\s+>= 1\s+over all devices together", seen["configuration"])
    assert "class Pooled(nn.Module):" in seen["tutorial"]
    assert "Configuration" in seen["found"]
    assert sorted(picture.name for picture in pictures.iterdir()) == [
        "docs-configuration.png", "docs-start.png", "docs-tutorial.png"
    ]  # fmt: skip

    (copy / "docs/model.md").write_text("# A page\n\n[nowhere](nowhere.md) [no heading](sweep.md#nothing)\n")
    said = make_docs(copy, python, sphinx, expect=2)
    assert said.count("WARNING") == 2
    assert "nowhere.md" in said
    assert "nothing" in said


@pytest.mark.slow
def test_a_long_package_and_odd_names_build_and_can_be_translated(
    bake: Bake, python: Path, sphinx: dict[str, str]
) -> None:
    odd = '{ref}`x` **Été** <b> "日本" [a](b) %Y |x| $1$'
    project = bake(project_name=odd, author_name=odd, project_slug="odd", package_name="x" * 63, env_manager="venv")
    folder = project.path
    assert make_docs(folder, python, sphinx, "BUILDER=gettext") == "wrote docs/_build/gettext\n"
    catalogue = (folder / "docs/_build/gettext/docs.pot").read_text(encoding="utf-8")
    first = 'msgid "First result in ten minutes"\nmsgstr ""\n'
    assert first in catalogue
    german = folder / "docs/locale/de/LC_MESSAGES/docs.po"
    german.parent.mkdir(parents=True)
    german.write_text(catalogue.replace(first, first.replace('msgstr ""', 'msgstr "In zehn Minuten"')))
    make_docs(folder, python, sphinx, "ARGS=-D language=de")
    page = (folder / "docs/_build/html/index.html").read_text(encoding="utf-8")
    assert '<h1>In zehn Minuten<a class="headerlink"' in page
    assert "{ref}`x` **Été** &lt;b&gt; &#34;日本&#34; [a](b) %" in page
