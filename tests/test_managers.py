"""Real Poetry and real uv: locked, installed, trained, switched; PyTorch from an index on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Project, build_engine, commit, generate, run, take_engine_as_package
from loopback import fetch_torch, serve, write_page, write_stub_torch
from pip._internal.models.index import PyPI

pytestmark = pytest.mark.slow

CUDA_BUILDS = {"cu126": "12.6", "cu130": "13.0", "cu132": "13.2"}
OTHER_BUILDS = {"rocm7.2": {"hip": "7.2.53211"}, "xpu": {"xpu": "20260000"}}  # with a Triton of their own
LOCKS = {"poetry": "poetry.lock", "uv": "uv.lock"}
ENGINE_INDEX = {  # the engine as a package, see test_engine_package.py
    "poetry": """
[[tool.poetry.source]]
name = "engine"
url = "INDEX"
priority = "explicit"

[tool.poetry.dependencies.runengine]
source = "engine"
""",
    "uv": """
[[tool.uv.index]]
name = "engine"
url = "INDEX"
explicit = true

[tool.uv.sources.runengine]
index = "engine"
""",
}
TOOLS = Path(sys.executable).parent  # poetry, uv and cruft are in the template's own environment


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real CPU wheel if pip has one at hand, and stub wheels for the other builds."""
    folder = tmp_path_factory.mktemp("index")
    cpu = folder / "cpu/torch"
    fetch_torch(cpu, running_python())
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}-none-any"
    for build in (*CUDA_BUILDS, *OTHER_BUILDS):
        versions = OTHER_BUILDS.get(build, {})
        write_stub_torch(folder / build / "torch", build, CUDA_BUILDS.get(build), tag, **versions)
        write_page(next((folder / build / "torch").glob("*.whl")))
    build_engine(ROOT, folder / "engine/runengine")
    with serve(folder) as address:
        yield address


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Poetry has asked the indexes: the first lock takes a minute, the others half of one."""
    return tmp_path_factory.mktemp("asked")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A user with an empty home, within another environment (which must not be touched)."""
    dropped = ("MAKE", "MFLAGS", "ARGS", "POETRY_", "UV_", "CONDA")
    env = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "home").mkdir()
    env |= {
        "HOME": str(tmp_path / "home"),
        "PATH": f"{linked_tools(tmp_path)}{os.pathsep}{env['PATH']}",
        "VIRTUAL_ENV": str(other),
        "POETRY_CACHE_DIR": str(tmp_path / "cache"),
        "POETRY_CONFIG_DIR": str(tmp_path / "config"),
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(tmp_path / "uv")),
    }
    try:  # what Poetry asks for each package; its plugin does with the list of files alone
        urllib.request.urlopen(f"{PyPI.pypi_url}/pip/25.1/json", timeout=60).close()
    except urllib.error.HTTPError:
        env["POETRY_PYPI_MIRROR_URL"] = PyPI.simple_url
    return env


def linked_tools(folder: Path) -> Path:
    """Only these programs of the template's environment on PATH, not its Python."""
    (folder / "tools").mkdir()
    for program in ("poetry", "uv", "cruft"):
        (folder / "tools" / program).symlink_to(TOOLS / program)
    return folder / "tools"


def make(template: Path, folder: Path, config_file: Path, index: str, manager: str, cuda: str) -> Project:
    answers = {"env_manager": manager, "cuda": cuda, "pytorch_index": index, "python_version": running_python()}
    return generate(template, folder, config_file, **answers)


def running_python() -> str:
    return "{}.{}".format(*sys.version_info)


@pytest.mark.parametrize("manager", LOCKS)
def test_a_project_is_set_up_and_trained(
    template: Path, tmp_path: Path, config_file: Path, index: str, env: dict[str, str], asked: Path, manager: str
) -> None:
    env["POETRY_CACHE_DIR"] = str(asked)
    with urllib.request.urlopen(f"{index}/") as page:
        if "cpu/" not in page.read().decode():
            pytest.skip(f"pip has no wheel of torch 2.13.0+cpu for Python {running_python()} at hand")
    project = make(template, tmp_path, config_file, index, manager, "cpu")
    kill_setup_in_the_middle(project.path, env)
    started = time.perf_counter()
    first = run("make", "setup", cwd=project.path, env=env).output
    resumed_s = time.perf_counter() - started
    assert "PyTorch 2.13.0+cpu, build cpu, as asked for\n" in first
    locked = project.text(LOCKS[manager])
    assert index in locked
    assert not list((project.path / ".venv").glob("lib/*/site-packages/nvidia_c*"))
    started = time.perf_counter()
    run("make", "setup", cwd=project.path, env=env)
    print(f"{manager}: make setup {resumed_s:.0f} s after it was killed, again {time.perf_counter() - started:.0f} s")
    assert project.text(LOCKS[manager]) == locked
    assert list((tmp_path / "other").iterdir()) == []
    run("make", "lock-fresh", cwd=project.path, env=env)
    settings = project.text("pyproject.toml")
    (project.path / "pyproject.toml").write_text(settings.replace('    "tqdm>=4.67,<5",\n', ""), encoding="utf-8")
    run("make", "lock-fresh", cwd=project.path, env=env, expect=2)
    (project.path / "pyproject.toml").write_text(settings, encoding="utf-8")
    printed = run("make", "data", "train", "evaluate", cwd=project.path, env=env).output
    assert float(re.findall(r"^test accuracy  (\S+)$", printed, re.MULTILINE)[0]) >= 0.97
    if manager == "uv":  # its environment has no pip; those of the others are the same to a wheelhouse
        keep_wheels_and_set_up_without_an_index(project, env)

    take_engine_as_package(project.path)
    with (project.path / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(ENGINE_INDEX[manager].replace("INDEX", f"{index}/engine"))
    run(TOOLS / manager, "lock", cwd=project.path, env={n: v for n, v in env.items() if n != "VIRTUAL_ENV"})
    run("make", "setup", cwd=project.path, env=env)
    run("make", "lock-fresh", cwd=project.path, env=env)
    assert list((project.path / ".venv").glob("lib/*/site-packages/runengine-*.dist-info"))
    one = run("make", "test", "ARGS=tests/test_run.py", cwd=project.path, env=env).output  # test_end_to_end.py runs all
    assert re.search(r"= \d+ passed(, \d+ skipped)? in ", one)
    moved = project.path.rename(tmp_path / "moved")
    run("make", "train", "ARGS=experiment=smoke", cwd=moved, env=env)
    run("make", "setup", cwd=moved, env=env)
    assert run(moved / ".venv/bin/dvc", "--version", cwd=moved, env=env).output.startswith("3.")


def keep_wheels_and_set_up_without_an_index(project: Project, env: dict[str, str]) -> None:
    make = ["make", "setup", "WHEELHOUSE=wheelhouse"]
    no_network = {**env, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    again = "Get it again (dvc pull --force wheelhouse), or make it again with a network: make setup wheelhouse.\n"
    refused = run(*make, cwd=project.path, env=no_network, expect=2).output
    assert f"{project.path}/wheelhouse is no wheelhouse: it has no SHA256SUMS. {again}" in refused

    run("make", "wheelhouse", "push", cwd=project.path, env=env)
    wheels = {file.name for file in (project.path / "wheelhouse").iterdir()}
    versions = environment_of(project, env)
    assert not (project.path / ".wheelhouse-new").exists()

    damaged, *lost = sorted((project.path / "wheelhouse").glob("n*.whl"))
    damaged.chmod(0o644)
    with damaged.open("ab") as file:
        file.write(b"x")
    assert f"{damaged} has changed. {again}" in run(*make, cwd=project.path, env=no_network, expect=2).output
    for wheel in lost:
        wheel.unlink()
    refused = run(*make, cwd=project.path, env=no_network, expect=2).output
    assert f"{lost[0]} is missing, with {len(lost) - 1} more. {again}" in refused
    run("make", "pull", cwd=project.path, env=env)
    assert not lost[0].exists()  # it is large, and comes by its name alone
    run(project.path / ".venv/bin/dvc", "pull", "--force", "wheelhouse", cwd=project.path, env=env)
    assert {file.name for file in (project.path / "wheelhouse").iterdir()} == wheels

    printed = run(*make, cwd=project.path, env=no_network).output
    assert "PyTorch 2.13.0+cpu, build cpu, as asked for\n" in printed
    assert re.search(r"\nenvironment +ok +\.venv, made from a wheelhouse\n", printed)
    assert environment_of(project, env) == versions
    run("make", "train", "ARGS=experiment=smoke", cwd=project.path, env=no_network)
    run("git", "init", "--quiet", cwd=project.path)
    in_git = run("git", "status", "--short", cwd=project.path).output.splitlines()
    assert [line for line in in_git if "wheelhouse" in line] == ["?? wheelhouse.dvc"]
    shutil.rmtree(project.path / ".git")


def environment_of(project: Project, env: dict[str, str]) -> set[str]:
    """Its packages, but for pip and what comes with it."""
    listed = run("uv", "pip", "freeze", "--exclude-editable", cwd=project.path, env=env).output.splitlines()
    return {line for line in listed if "==" in line and not line.startswith(("pip=", "setuptools="))}


def kill_setup_in_the_middle(project: Path, env: dict[str, str]) -> None:
    """SIGKILL to `make setup` and all its children once some packages are there."""
    process = subprocess.Popen(
        ["make", "setup"],
        cwd=project,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and len(list(project.glob(".venv/lib/*/site-packages/*"))) < 30:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (project / ".venv/.ready").exists()


@pytest.mark.parametrize("cuda", CUDA_BUILDS)
@pytest.mark.parametrize("manager", LOCKS)
def test_every_cuda_build_is_locked_from_its_own_index(
    template: Path,
    tmp_path: Path,
    config_file: Path,
    index: str,
    env: dict[str, str],
    asked: Path,
    manager: str,
    cuda: str,
) -> None:
    project = make(template, tmp_path, config_file, index, manager, cuda)
    outside = {name: value for name, value in env.items() if name != "VIRTUAL_ENV"}
    run(TOOLS / manager, "lock", cwd=project.path, env={**outside, "POETRY_CACHE_DIR": str(asked)})
    packages = tomllib.loads(project.text(LOCKS[manager]))["package"]
    versions = [package["version"] for package in packages if package["name"] == "torch"]
    assert f"2.13.0+{cuda}" in versions
    assert len(versions) == 2  # the other one is for the Mac
    assert f"{index}/{cuda}" in project.text(LOCKS[manager])


@pytest.mark.parametrize(("manager", "cuda", "triton"), [
    ("poetry", "rocm7.2", ("triton-rocm", "3.7.1")),
    ("uv", "rocm7.2", ("triton-rocm", "3.7.1")),
    ("uv", "xpu", ("triton-xpu", "3.7.2")),
])  # fmt: skip
def test_a_build_with_its_own_triton_is_locked_with_it(
    template: Path, tmp_path: Path, config_file: Path, index: str, env: dict[str, str], asked: Path,
    manager: str, cuda: str, triton: tuple[str, str],
) -> None:  # fmt: skip
    project = make(template, tmp_path, config_file, index, manager, cuda)
    outside = {name: value for name, value in env.items() if name != "VIRTUAL_ENV"}
    outside["POETRY_CACHE_DIR"] = str(asked)
    run(TOOLS / manager, "lock", cwd=project.path, env=outside)
    packages = tomllib.loads(project.text(LOCKS[manager]))["package"]
    here = [package for package in packages if f"{index}/{cuda}" in json.dumps(package.get("source"))]
    assert sorted((package["name"], package["version"]) for package in here) == [("torch", f"2.13.0+{cuda}"), triton]
    run("make", "lock-fresh", cwd=project.path, env=outside)
    plan = ["sync", "--dry-run", "--extra", "dev"] if manager == "uv" else ["install", "--dry-run", "--extras", "dev"]
    planned = run(TOOLS / manager, *plan, cwd=project.path, env=outside).output
    for name, version in (triton, ("torch", f"2.13.0+{cuda}")):
        assert re.search(rf"\b{name}(==| \(){re.escape(version)}", planned), planned


@pytest.mark.parametrize(("manager", "install"), [
    ("poetry", "pipx install poetry"), ("uv", "https://docs.astral.sh/uv"),
])  # fmt: skip
def test_a_missing_tool_gets_one_sentence(
    template: Path, tmp_path: Path, config_file: Path, bare_machine: Path, manager: str, install: str
) -> None:
    project = make(template, tmp_path, config_file, "http://127.0.0.1:1", manager, "cpu")
    printed = run("make", "setup", cwd=project.path, expect=2).output.splitlines()
    assert printed[0] == f"error: {manager} is not here. Install it ({install}), then run make setup again"


def test_a_missing_python_is_told_with_the_command_of_pyenv(
    template: Path, tmp_path: Path, config_file: Path, bare_machine: Path
) -> None:
    project = make(template, tmp_path, config_file, "http://127.0.0.1:1", "poetry", "cpu")
    for program in ("poetry", "pyenv"):
        (bare_machine / program).symlink_to("/bin/true")
    printed = run("make", "setup", cwd=project.path, expect=2).output.splitlines()
    assert printed[0] == f"error: no Python from 3.11 to 3.13 is here. Run: pyenv install {running_python()}"


def test_switching_changes_what_depends_on_it_and_nothing_else(
    template: Path, tmp_path: Path, config_file: Path, index: str, env: dict[str, str]
) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(template, origin)
    commit(origin)
    answers = {"env_manager": "uv", "cuda": "cu126", "pytorch_index": index, "python_version": running_python()}
    create = (TOOLS / "cruft", "create", origin, "--no-input", "--config-file", config_file, "--output-dir", tmp_path)
    run(*create, "--extra-context", json.dumps(answers), cwd=tmp_path)
    commit(tmp_path / "my-project")
    project = Project(tmp_path / "my-project")
    run("make", "switch", "CUDA=cu130", cwd=project.path, env=env)
    changed = run("git", "status", "--short", cwd=project.path).output.split("\n")
    assert [line[3:] for line in changed if line] == [".cruft.json", "README.md", "pyproject.toml", "uv.lock"]
    diff = run("git", "diff", "HEAD", "pyproject.toml", cwd=project.path).output.splitlines()
    assert [line[1:] for line in diff if line.startswith("-") and not line.startswith("---")] == [
        '    "torch>=2.13,<2.15",',
        """    "tensorflow[and-cuda]>=2.21,<2.22; sys_platform == 'linux' and platform_machine == 'x86_64'",""",
        'cuda = "cu126"',
        f'torch_index = "{index}/cu126"',
        'driver = "525.60.13" # the least it runs with',
        'capability = "5.0-9.0" # of the GPUs it has code for, least-greatest',
        f'url = "{index}/cu126"',
    ]
    assert "2.13.0+cu130" in project.text("uv.lock")


def test_switching_says_what_it_needs(template: Path, tmp_path: Path, config_file: Path, env: dict[str, str]) -> None:
    project = make(template, tmp_path, config_file, "http://127.0.0.1:1", "uv", "cpu")
    sentences = {
        (): "error: switch to what? For example: make switch CUDA=cu130, or ENV=conda",
        ("CUDA=cu130",): (
            "error: this project does not know its template. Run: cruft link, with the address of the template"
        ),
    }
    for settings, sentence in sentences.items():
        printed = run("make", "switch", *settings, cwd=project.path, env=env, expect=2).output
        assert printed.splitlines()[0] == sentence
