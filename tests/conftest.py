"""`bake(...)` generates a project from a clean copy of the template, on a machine that says nothing of itself."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback import write_page

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "{{cookiecutter.project_slug}}"
EXTENSION = "needs_cookiecutter_2_4.py"
TEMPLATE_PARTS = ("cookiecutter.json", "hooks", "ml_template", EXTENSION, PROJECT.name)
ENGINE = ("src/runengine/", "src/hydra_plugins/")  # the same, byte for byte, in all projects
collect_ignore = ["engine", "tasks"]  # they run in the project's environment, which alone has torch
QUESTIONS: dict[str, Any] = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
CHOICES: dict[str, list[str]] = {
    name: value for name, value in QUESTIONS.items() if isinstance(value, list) and not name.startswith("_")
}


@dataclass(frozen=True)
class Project:
    """A generated project."""

    path: Path

    def files(self) -> list[str]:
        return sorted(file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())

    def text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Answer:
    """What a process left behind."""

    returncode: int
    output: str


Bake = Callable[..., Project]


def start(command: Sequence[str], cwd: Path, env: Mapping[str, str] | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None, expect: int | None = 0) -> Answer:
    """Run a command to its end; a failure shows what it printed. `expect=None` takes any exit status."""
    words = [str(part) for part in command]
    try:
        done = start(words, cwd, env)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        done = start(words, cwd, env)  # a sandbox's kernel could not read the name, once in CI: nothing was started
    answer = Answer(done.returncode, done.stdout)
    assert expect is None or done.returncode == expect, (
        f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    )
    return answer


def commit(folder: Path) -> None:
    """Put everything in the folder into its Git repository, as anybody."""
    run("git", "init", "-q", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("git", "-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "as it is", cwd=folder)


def choices() -> list[dict[str, str]]:
    """Every single choice of cookiecutter.json, the other questions at their defaults."""
    return [{name: option} for name, options in CHOICES.items() for option in options]


def fit(answers: Mapping[str, str]) -> bool:
    """Together: conda-forge does not have each build of PyTorch."""
    build = QUESTIONS["_builds"].get(answers.get("cuda"), {"conda": []})
    return answers.get("env_manager") != "conda" or "conda" in build


def pairs() -> Iterator[dict[str, str]]:
    """Every pair of choices. A project has many: each has as many new ones as can be, or there would be hundreds."""
    every = [(name, option) for name, options in CHOICES.items() for option in options]
    new = [pair for pair in itertools.combinations(every, 2) if pair[0][0] != pair[1][0] and fit(dict(pair))]
    while new:
        answers = dict(new[0])
        for name in [name for name in CHOICES if name not in answers]:
            known = set(answers.items())
            gain = {
                option: sum(set(pair) <= known | {(name, option)} for pair in new if (name, option) in pair)
                for option in CHOICES[name]
                if fit({**answers, name: option})
            }
            answers[name] = max(gain, key=gain.__getitem__)
        new = [pair for pair in new if not set(pair) <= set(answers.items())]
        yield {name: answers[name] for name in CHOICES}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template without tests, tools and demo: cookiecutter copies its whole folder before each generation."""
    copy = tmp_path_factory.mktemp("template") / "ml-template"
    copy_template(copy)
    return copy


def copy_template(folder: Path, *more: str) -> None:
    """Copy what generation needs, and `more` of the repository, into a new folder."""
    folder.mkdir()
    for part in (*TEMPLATE_PARTS, *more):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
        else:
            shutil.copy(source, folder / part)


def generate(template: Path, folder: Path, config_file: Path | None = None, **answers: str) -> Project:
    """Generate a project in a process of its own, with these answers, on the machine as it is."""
    config = ["--default-config"] if config_file is None else ["--config-file", str(config_file)]
    command = [sys.executable, "-m", "cookiecutter", str(template), "--no-input", *config, "-o", str(folder)]
    run(*command, *(f"{name}={value}" for name, value in answers.items()), cwd=folder)
    return Project(folder / answers.get("project_slug", "my-project"))


def without(project: Path, *patterns: str) -> Callable[[str, list[str]], set[str]]:
    """For shutil.copytree, of a project without these and without caches; src/ has folders `data` and `runs`, too."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        in_src = Path(folder).relative_to(project).parts[:1] == ("src",)
        return shutil.ignore_patterns("__pycache__", *(() if in_src else patterns))(folder, names)

    return ignore


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git knows no name: what is generated depends on the answers alone. And no test is a part of `make test`."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "PYTHONDONTWRITEBYTECODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one folder, with git and the basic tools in it: no GPU, no poetry, conda, uv or pyenv is found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("git", "sh", "env", "sleep", "unshare", "make"):
        if found := shutil.which(program):
            (folder / Path(found).name).symlink_to(found)  # on Windows git.exe
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return folder


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """cookiecutter leaves rendered hooks and a copy of the template in the temporary folder: not in everybody's.

    Its name is short: PyTorch's loader processes wait for ever where the path of a socket there has over 107 letters.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """cookiecutter's own files in the test's folder, not in the home of whoever runs the tests."""
    file = tmp_path / "cookiecutter.yaml"
    folders = {"cookiecutters_dir": str(tmp_path / "clones"), "replay_dir": str(tmp_path / "replay")}
    file.write_text(yaml.safe_dump(folders), encoding="utf-8")
    return file


@pytest.fixture
def bake_after_a_look(template: Path, tmp_path: Path, config_file: Path, bare_machine: Path) -> Bake:
    """Generate a project on a bare machine with these answers, the others at their defaults."""
    from cookiecutter.main import cookiecutter

    def generate(**answers: str) -> Project:
        output = tmp_path / "out"
        output.mkdir(exist_ok=True)
        path = cookiecutter(
            str(template), no_input=True, extra_context=answers, output_dir=str(output), config_file=str(config_file)
        )
        return Project(Path(path))

    return generate


@pytest.fixture
def bake(bake_after_a_look: Bake, monkeypatch: pytest.MonkeyPatch) -> Bake:
    """The same, without the hook that looks at the machine: for it cookiecutter copies the template each time."""
    import cookiecutter.main

    monkeypatch.setattr(cookiecutter.main, "run_pre_prompt_hook", lambda folder: folder)
    return bake_after_a_look


@pytest.fixture(scope="session")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user with an empty home who runs make, not of a test inside make."""
    # `make test ARGS=-v` hands ARGS on to every make below
    of_make = ("MAKE", "MFLAGS", "ARGS", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(of_make)}
    # of all projects that one worker makes: to look at torch and Lightning takes mypy a minute
    return {
        **kept,
        "HOME": str(tmp_path_factory.mktemp("home")),
        "MYPY_CACHE_DIR": str(tmp_path_factory.mktemp("mypy")),
    }


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> tuple[Path, str]:
    """`make demo` in a clean copy of this repository: the project's folder, and what was printed.

    Each worker has a project of its own. The first one also makes the environments, which the others then copy.
    """
    clone = tmp_path_factory.mktemp("clone") / "ml-template"
    copy_template(clone, "Makefile", "pyproject.toml")
    project = clone / "demo/my-project"
    # on a machine with poetry, conda, uv or a GPU the default answers would be others
    answers = "ANSWERS=env_manager=venv cuda=cpu"
    base = tmp_path_factory.getbasetemp()
    first = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "first-demo"
    try:
        first.mkdir()
    except FileExistsError:
        if other := wait_for_text(first / "clone"):
            link_environment(Path(other), clone)
            run("make", "demo/.generated", answers, cwd=clone, env=env)
            link_environment(Path(other) / "demo/my-project", project)
        return project, run("make", "demo", answers, cwd=clone, env=env).output
    try:
        # a first try that broke off in the middle of generating
        (project / "src").mkdir(parents=True)
        printed = run("make", "demo", answers, cwd=clone, env=env).output
    except BaseException:
        (first / "clone").write_text("none", encoding="utf-8")
        raise
    (first / "clone").write_text(str(clone), encoding="utf-8")
    return project, printed


def wait_for_text(file: Path, seconds: float = 1800) -> str:
    """What another worker writes into this file; empty where it wrote `none`."""
    for _ in range(int(seconds / 0.5)):
        if file.is_file() and (text := file.read_text(encoding="utf-8")):
            return "" if text == "none" else text
        time.sleep(0.5)
    raise AssertionError(f"{file} was not written in {seconds} s")


@pytest.fixture
def project(demo: tuple[Path, str]) -> Path:
    return demo[0]


@pytest.fixture
def folder(demo: tuple[Path, str]) -> Path:
    """The folder of the demo's run: other tests add more to the same project."""
    found = re.search(r"^run folder     (\S+)$", demo[1], re.MULTILINE)
    assert found, demo[1]
    return demo[0] / found[1]


@pytest.fixture(scope="session")
def python(demo: tuple[Path, str]) -> Path:
    return demo[0] / ".venv/bin/python"


EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=600, resources={"metadata": {"path": "."}}).execute()
print(nbformat.writes(notebook))
"""


@pytest.fixture(scope="session")
def jupyter(python: Path, tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Callable[[Path], str]:
    """Executes a notebook in its own folder, in a kernel of the project's Python; returns it with its output."""
    folder = tmp_path_factory.mktemp("jupyter")
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", folder)
    run(python, *pip, "nbclient>=0.10,<1", "ipykernel>=6.29,<8", cwd=folder, env=env)

    def execute(file: Path) -> str:
        of_project = file.parents[1] / ".venv/bin/python"
        there = {**env, "PYTHONPATH": str(folder)}
        return run(of_project, "-c", EXECUTE, file.name, cwd=file.parent, env=there).output

    return execute


def install_next_to(python: Path, base: Path, *wanted: str) -> Path:
    """A folder with what pip would add to this environment for these packages; the environment stays as it is."""
    report, folder = base / "added.json", base / f"added-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:8]}"
    if folder.is_dir():
        return folder
    run(python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", report, *wanted, cwd=base)
    added = [one["metadata"] for one in json.loads(report.read_text(encoding="utf-8"))["install"]]
    packages = [f"{package['name']}=={package['version']}" for package in added]
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *packages, cwd=base)
    return folder


def extra(project: Path, name: str) -> list[str]:
    """What pyproject.toml lists under this extra."""
    listed: list[str] = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ][name]
    return listed


def link_environment(demo: Path, project: Path) -> None:
    """Give a folder the environment of another one: the same files under other names, its own paths in them."""
    venv = project / ".venv"
    shutil.copytree(demo / ".venv", venv, symlinks=True, copy_function=link)
    for file in (venv / "pyvenv.cfg", *venv.glob("bin/*"), *venv.glob("lib/*/site-packages/*.pth")):
        if file.is_file() and not file.is_symlink() and str(demo).encode() in (content := file.read_bytes()):
            mode = file.stat().st_mode
            file.unlink()  # else the other environment's file would change, too
            file.write_bytes(content.replace(str(demo).encode(), str(project).encode()))
            file.chmod(mode)
    (venv / ".ready").unlink()
    wanted = hashlib.sha256((project / "pyproject.toml").read_bytes()).hexdigest()
    (venv / ".ready").write_text(wanted, encoding="utf-8")


def link(source: str, target: str) -> None:
    """One more name for a file; none if it was there for a moment only."""
    with contextlib.suppress(FileNotFoundError):
        os.link(source, target)


def build_engine(template: Path, folder: Path) -> Path:
    """The engine as a wheel in this folder, with its page of an index."""
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        folder,
        template / "packaging",
        cwd=ROOT,
    )
    (wheel,) = folder.glob("runengine-*.whl")
    write_page(wheel)
    return wheel


def take_engine_as_package(project: Path) -> None:
    """Delete the engine from a project, which names it among its dependencies instead."""
    version = (project / "src/runengine/VERSION").read_text(encoding="utf-8").strip()
    for folder in ("src/runengine", "src/hydra_plugins"):
        shutil.rmtree(project / folder)
    settings = project / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    for old, new in (
        (', "src/runengine", "src/hydra_plugins"]', "]"),
        ('    "tqdm>=', f'    "runengine=={version}",\n    "tqdm>='),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    settings.write_text(text, encoding="utf-8")
    pipeline = project / "dvc.yaml"
    lines = pipeline.read_text(encoding="utf-8").splitlines(keepends=True)
    pipeline.write_text("".join(line for line in lines if "- src/runengine/" not in line), encoding="utf-8")


SSHD = Path("/usr/sbin/sshd")


@contextlib.contextmanager
def serve_ssh(folder: Path, *settings: str) -> Iterator[int]:
    """An sshd on loopback, at this port; it lets in who has `folder/key`, and nobody who has `folder/other`."""
    for name in ("host", "key", "other"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name, cwd=folder)
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\n"
        + "".join(f"{setting}\n" for setting in settings),
        encoding="utf-8",
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it locks its children in
    server = subprocess.Popen([SSHD, "-D", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def served(project: Path, env: dict[str, str], request: pytest.FixtureRequest) -> Iterator[int]:
    """A port at which `make <target>` serves; stopped afterwards, with its children."""
    port = free_port()
    command = ["make", request.param, f"PORT={port}"]
    process = subprocess.Popen(command, cwd=project, env=env, start_new_session=True)
    try:
        for _ in range(480):  # MLflow's server took 50 s on a machine with other work
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.25)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script and what it needs: the package that its lock names, by its hash."""
    if not (shutil.which("chromium") and shutil.which("npm")):
        pytest.skip("a look at the pages needs Node.js 20 or newer with npm, and: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser") / "browser"
    shutil.copytree(ROOT / "tests/browser", folder)
    run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
    return folder


def look(browser: Path, program: str, place: int | Path, name: str, picture: Path) -> dict[str, Any]:
    """What stood on the pages of a program, at this port or in this file; nothing went wrong there."""
    env = {**os.environ, "CHROMIUM": str(shutil.which("chromium"))}
    address = place.as_uri() if isinstance(place, Path) else f"http://127.0.0.1:{place}"
    printed = run("node", "look.mjs", program, address, name, picture, cwd=browser, env=env).output
    seen: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert seen["troubles"] == [], "\n".join(seen["troubles"])
    if images := os.environ.get("SCREENSHOTS"):
        for taken in picture.parent.glob("*.png"):
            shutil.copy(taken, ROOT / images)
    return seen


# what takes longest starts first, so that all workers end at about the same time; the second and third need no demo yet
LONGEST = (
    "test_end_to_end.py", "test_managers.py", "test_versions.py", "test_engine.py", "test_examples.py",
    "test_slurm.py", "test_dvc.py", "test_tracking.py", "test_tasks.py", "test_devices.py", "test_containers.py",
    "test_ssh.py", "test_survival.py", "test_engine_package.py", "test_odd_name.py", "test_benchmarks.py",
    "test_own_data.py", "test_setup.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others after them as they were: `make test` gives each file to one worker."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_configure(config: pytest.Config) -> None:
    """CI installs every part that a test needs: there, nothing may be missing. And a torch has one thread."""
    config.stash[SKIP_IS_FAILURE] = os.environ.get("CI") == "true"
    # the workers share the cores: a training whose threads are more than the free cores takes three times as long
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("ARGS", None)  # of `make test`, not of what the tests make


NO_ENGINE = "no engine for containers runs here, and none can be started"  # a machine for CI may be a container itself
NO_CLUSTER = "no API server of Kubernetes is here: tests/kubernetes/build.sh builds one"  # five minutes, not for CI
SKIP_IS_FAILURE = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    allowed = hasattr(report, "wasxfail") or any(why in str(report.longrepr) for why in (NO_ENGINE, NO_CLUSTER))
    if report.skipped and item.config.stash[SKIP_IS_FAILURE] and not allowed:
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {report.longrepr}"
    return report
