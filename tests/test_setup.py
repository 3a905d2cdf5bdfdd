"""`make setup` against a PyTorch index on loopback: stub wheels stand for builds that cannot be had here."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Answer, Bake, Project, generate, link_environment, run
from loopback import serve, write_stub, write_stub_torch

Setup = Callable[..., Answer]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """The address of an index whose `cpu` is right and whose `cu126` gives a CPU build."""
    write_stub_torch(tmp_path / "index/cpu/torch", "cpu", None)
    write_stub_torch(tmp_path / "index/cu126/torch", "cu126", None)
    write_stub_torch(tmp_path / "index/cu130/torch", "cu130", "13.0")
    write_stub_torch(tmp_path / "index/rocm7.2/torch", "rocm7.2", hip="7.2.53211")
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


@pytest.mark.slow
def test_a_build_for_amd_is_known_to_the_doctor_and_comes_with_its_triton(setup: Setup, tmp_path: Path) -> None:
    printed = setup("rocm7.2").output
    assert re.search(r"\nPyTorch +ok +PyTorch 2.13.0\+rocm7.2, build rocm7.2, as asked for\n", printed)
    assert re.search(r"\ndriver +skip +this build is for AMD's GPUs and needs no driver of NVIDIA's\n", printed)
    assert list((tmp_path / "out/my-project/.venv").glob("lib/*/site-packages/triton_rocm-3.7.1.dist-info"))


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


@pytest.fixture
def step(bake: Bake, index: str, tmp_path: Path) -> Setup:
    """Runs code in a project that needs `torch` and, for development, `tool`, each from an index of its own."""
    write_stub(tmp_path / "index/own/tool", "tool", "1.0", {"tool.py": ""})
    project = bake()
    settings = project.path / "pyproject.toml"
    text = settings.read_text()
    for key, value in (
        ("cuda", '"cu130"'),
        ("torch_index", f'"{index}/cu130"'),
        ("dependencies", '["torch>=2.13,<2.16"]'),
        ("dev", '["tool"]'),
    ):
        text = re.sub(rf'^{key} = ("[^"\n]*"|\[.*?^\])$', f"{key} = {value}", text, flags=re.MULTILINE | re.DOTALL)
    settings.write_text(text)
    head = (
        "import sys, tomllib; sys.path.insert(0, 'scripts'); import setup_env as setup\n"
        "project, pip = tomllib.loads(setup.Path('pyproject.toml').read_text()), setup.pip\n"
        # the project itself is not built, which would take setuptools
        "setup.pip = lambda *words, **more: 0 if '--editable' in words else pip(*words, **more)\n"
    )

    def run_code(code: str, expect: int = 0, **more: str) -> Answer:
        env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        env |= {"PIP_INDEX_URL": f"{index}/own", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", **more}
        return run(sys.executable, "-c", head + code, cwd=project.path, env=env, expect=expect)

    return run_code


NEW = "setup.make_venv('{}.{}'.format(*sys.version_info))\n"
# the newest pip, which is not on these indexes: that of the environment in which the tests run
NEWEST_PIP = """
import pip as ours
(theirs,) = setup.VENV.glob('lib/*/site-packages/pip')
setup.shutil.rmtree(theirs)
setup.shutil.copytree(setup.Path(ours.__file__).parent, theirs)
"""
INSTALL = "setup.install_torch(project['tool']['ml-template'], 'torch>=2.13,<2.16')\nsetup.pip('install', 'tool')\n"
READY = "setup.READY.write_text(setup.fingerprint())\n"
STALE = "pylock.toml was written for another pyproject.toml"


@pytest.mark.slow
def test_pip_writes_a_lock_and_installs_what_it_says(step: Setup, index: str, tmp_path: Path) -> None:
    project = tmp_path / "out/my-project"
    assert step(NEW + "setup.lock()", expect=1).output.endswith(
        "error: the environment is not there, or not what pyproject.toml says. Run: make setup lock.\n"
    )
    old = step(INSTALL + READY + "setup.pip = lambda *words, **more: 1\nsetup.lock()", expect=1).output
    assert old.endswith(
        "error: the pip in .venv is too old to write locks. Run: .venv/bin/python -m pip install 'pip>=26.3,<27'.\n"
    )
    printed = step(NEWEST_PIP + "setup.lock()\nsetup.fresh()\nassert setup.is_up_to_date()").output
    assert printed.endswith("pylock.toml holds 2 exact packages: commit it, and `make setup` installs these.\n")
    locked = tomllib.loads((project / "pylock.toml").read_text())
    tool, torch = sorted(locked["packages"], key=lambda package: str(package["name"]))
    assert (locked["extras"], tool["marker"], "marker" in torch) == (["dev"], "'dev' in extras", False)
    assert (tool["version"], torch["version"]) == ("1.0", "2.13.0+cu130")
    assert torch["wheels"][0]["url"] == f"{index}/cu130/torch/torch-2.13.0%2Bcu130-py3-none-any.whl"
    assert len(torch["wheels"][0]["hashes"]["sha256"]) == 64

    newer = tmp_path / "index/own/tool"
    write_stub(newer, "tool", "2.0", {"tool.py": ""})
    again = "setup.shutil.rmtree('.venv')\n" + NEW + NEWEST_PIP
    for extras, expected in (("", {"torch"}), ("dev", {"tool", "torch"})):
        step(again + "setup.install_locked()", EXTRAS=extras)
        found = {file.name.split("-")[0]: file.name for file in project.glob(".venv/lib/*/site-packages/*.dist-info")}
        assert found.keys() - {"pip", "setuptools"} == expected
    assert found["tool"] == "tool-1.0.dist-info"

    (newer / "tool-1.0-py3-none-any.whl").unlink()
    gone = step(again + "setup.install_locked()", expect=1).output
    assert gone.endswith(
        "error: pip could not install what pylock.toml says (its message stands above). "
        "If a file is gone for good: rm pylock.toml, then make setup lock.\n"
    )
    (project / "pylock.toml").unlink()
    step(INSTALL + READY + "setup.lock()")
    assert '"2.0"' in (project / "pylock.toml").read_text()


@pytest.mark.slow
def test_pip_locks_a_build_with_its_own_triton(step: Setup, index: str, tmp_path: Path) -> None:
    settings = tmp_path / "out/my-project/pyproject.toml"
    settings.write_text(settings.read_text().replace("cu130", "rocm7.2"))
    step(NEW + NEWEST_PIP + INSTALL + READY + "setup.lock()")
    locked = tomllib.loads((settings.parent / "pylock.toml").read_text())["packages"]
    urls = {package["name"]: package["wheels"][0]["url"].partition("+")[0] for package in locked}
    assert urls["torch"].startswith(f"{index}/rocm7.2/torch/torch-2.13.0")
    assert urls["triton-rocm"] == f"{index}/rocm7.2/triton-rocm/triton_rocm-3.7.1-py3-none-any.whl"


def test_a_lock_that_does_not_fit_is_not_used(step: Setup, tmp_path: Path) -> None:
    project = tmp_path / "out/my-project"
    step(NEW + NEWEST_PIP + INSTALL + READY + "setup.lock()")
    lock = project / "pylock.toml"
    assert step("print(setup.lock_fits(project))").output == "True\n"
    ours = lock.read_text()
    lock.write_text(ours.replace('\npython = "3', '\npython = "2'))
    found = "{}.{}".format(*sys.version_info)
    said = f"pylock.toml is not for this environment (python 2{found[1:]}, not {found})"
    assert step("print(setup.lock_fits(project))").output == (
        f"{said} and is not used; `make lock` writes it again.\nFalse\n"
    )
    step("setup.fresh()")  # it may be right for the machine where it was written
    assert step("setup.lock_fits(project)", expect=1, LOCKED="1").output == (
        f"error: {said}, and an image holds what a lock says. Run: rm pylock.toml, or make clean-env setup lock.\n"
    )
    lock.write_text(ours)
    settings = project / "pyproject.toml"
    settings.write_text(settings.read_text().replace('["tool"]', '["tool<3"]'))
    assert step("print(setup.lock_fits(project))").output.startswith(f"{STALE} and is not used; ")
    assert step("setup.fresh()", expect=1).output == f"error: {STALE}. Run: make setup lock.\n"
    step(READY + "setup.lock()\nsetup.fresh()")
    lock.write_text("<<<<<<< HEAD\n" + lock.read_text())
    damaged = "pylock.toml is damaged, or not written by make lock. Run: rm pylock.toml, then make setup lock.\n"
    for code in ("setup.lock_fits(project)", "setup.fresh()"):
        assert step(code, expect=1).output == f"error: {damaged}"
    lock.unlink()
    step(READY + "setup.lock()\nsetup.fresh()")


def test_no_password_gets_into_a_lock(step: Setup, index: str, tmp_path: Path) -> None:
    step(NEW + NEWEST_PIP + INSTALL + READY)
    secret = index.replace("http://", "http://me:hunter2@") + "/own"  # pragma: allowlist secret
    answer = step("setup.lock()", PIP_INDEX_URL=secret)
    lock = tmp_path / "out/my-project/pylock.toml"
    assert f'url = "{index}/own/tool/tool-1.0-py3-none-any.whl"' in lock.read_text()
    assert "hunter2" not in answer.output


@pytest.mark.slow
def test_what_pip_has_locked_is_what_the_next_setup_installs(
    demo: tuple[Path, str], template: Path, tmp_path: Path, config_file: Path, env: dict[str, str]
) -> None:
    project = generate(template, tmp_path, config_file, env_manager="venv", cuda="cpu")
    link_environment(demo[0], project.path)
    pip = (project.path / ".venv/bin/python", "-m", "pip")
    before = run(*pip, "freeze", "--exclude-editable", cwd=tmp_path, env=env).output
    printed = run("make", "lock", "lock-fresh", cwd=project.path, env=env).output
    packages = tomllib.loads(project.text("pylock.toml"))["packages"]
    assert f"pylock.toml holds {len(packages)} exact packages: commit it, and `make setup` installs these.\n" in printed
    marked = {package["name"] for package in packages if "marker" in package}
    assert {"ruff", "mypy", "pytest"} <= marked
    assert not {"torch", "mlflow", "dvc"} & marked
    run(*pip, "uninstall", "--yes", "--quiet", "tqdm", cwd=tmp_path, env=env)
    (project.path / ".venv/.ready").unlink()
    printed = run("make", "setup", "LOCKED=1", cwd=project.path, env=env).output
    assert "\n== Installing what pylock.toml says\n" in printed
    assert run(*pip, "freeze", "--exclude-editable", cwd=tmp_path, env=env).output == before
    assert "The environment in .venv is up to date.\n" in run("make", "setup", cwd=project.path, env=env).output
    run("git", "init", "--quiet", cwd=project.path)
    run("git", "add", "--all", cwd=project.path)
    run(project.path / ".venv/bin/pre-commit", "run", "--all-files", cwd=project.path, env=env)
