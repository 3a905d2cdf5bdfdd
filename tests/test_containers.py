"""The image and the devcontainer of a generated project: built, started, trained in and asked, by a real engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CHOICES, NO_ENGINE, QUESTIONS, ROOT, Bake, Project, free_port, generate, run, wait_for_text
from loopback import fetch_torch, serve

PYTHON = "3.11"  # Debian 12's, of which the stand-in for the official base image is made
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"  # of this machine, whose network may have some of its own
IMAGE = "ml-template-test"
PLANTED = "planted-4f1c-and-to-be-found-nowhere"
MANAGERS = [manager for manager in CHOICES["env_manager"] if manager != "auto"]
# what is used of devcontainers' schema (devcontainers/spec, devContainer.base.schema.json), which no package here has
KEYS: dict[str, type] = {
    "name": str, "build": dict, "remoteUser": str, "hostRequirements": dict, "runArgs": list, "mounts": list,
    "postCreateCommand": str, "customizations": dict,
}  # fmt: skip


@pytest.mark.parametrize("manager", MANAGERS)
def test_containers_are_well_formed(bake: Bake, manager: str) -> None:
    project = bake(env_manager=manager, python_version="3.12", cuda="cu130")
    files = ["Dockerfile", ".devcontainer/Dockerfile"]
    assert run(Path(sys.executable).with_name("hadolint"), *files, cwd=project.path).output == ""
    base = QUESTIONS["_images"]["conda" if manager == "conda" else "3.12"]
    assert all(f'ARG BASE="{base}"\n' in project.text(file) for file in files)
    described = json.loads(project.text(".devcontainer/devcontainer.json"))
    assert {key: type(value) for key, value in described.items()} == KEYS
    assert [(mount["type"], len(mount)) for mount in described["mounts"]] == [("volume", 3)]  # type, source, target
    assert described["hostRequirements"] == {"gpu": "optional"}  # `--gpus all` would fail where there is none
    assert (project.path / ".devcontainer" / described["build"]["dockerfile"]).is_file()
    interpreter = described["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert interpreter.endswith("/.conda/bin/python" if manager == "conda" else "/.venv/bin/python")


def test_every_base_is_pinned_by_its_digest() -> None:
    assert list(QUESTIONS["_images"]) == [*(version for version in CHOICES["python_version"][1:]), "conda", "conda-ci"]
    assert all(len(image.partition("@sha256:")[2]) == 64 for image in QUESTIONS["_images"].values())


def test_make_image_says_what_it_needs(bake: Bake) -> None:
    project = bake(env_manager="uv")
    missing = run("make", "image", cwd=project.path, expect=2).output
    assert missing.splitlines()[0] == (
        "error: uv.lock is missing, so nobody knows which versions to install. "
        "Run make setup, which writes it, and keep it in Git"
    )
    (project.path / "uv.lock").touch()
    assert run("make", "image", cwd=project.path, expect=2).output.splitlines()[0] == (
        "error: neither docker nor podman is here. "
        "Install one (https://docs.docker.com/engine/install), then run make image again"
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], list[str]]]:
    """The environment in which `docker` finds an engine, and what builds have to be told there.

    The engine that runs; else Debian's on a private socket, with a base image of Debian's packages in place of the
    official one, which only a registry has.
    """
    env = dict(os.environ)
    if shutil.which("docker") and subprocess.run(["docker", "info"], env=env, capture_output=True).returncode == 0:
        yield env, []
        return
    if os.geteuid() != 0 or not all(shutil.which(program) for program in ("docker", "dockerd", "debootstrap")):
        pytest.skip(f"{NO_ENGINE} (as root, after: apt-get install docker.io debootstrap)")
    folder = Path(tempfile.mkdtemp(prefix="docker", dir="/var/tmp"))  # a socket's name has few letters
    env["DOCKER_HOST"] = f"unix://{folder}/socket"
    (folder / "none.json").write_text("{}")
    options = ["iptables", "ip6tables", "ip-forward", "ip-masq", "userland-proxy"]
    places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid", "config-file": "none.json"}
    command = ["dockerd", "-H", env["DOCKER_HOST"], "--bridge=none", *(f"--{option}=false" for option in options)]
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(
            [*command, *(f"--{option}={folder / name}" for option, name in places.items())], stdout=log, stderr=log
        )
    try:
        for _ in range(240):
            if subprocess.run(["docker", "info"], env=env, capture_output=True).returncode == 0:
                break
            time.sleep(0.25)
        else:
            pytest.skip(f"{NO_ENGINE}: {(folder / 'log').read_text()[-500:]}")
        import_base(tmp_path_factory.mktemp("base") / "root", env)
        yield env, ["--network=host", "--build-arg=BASE=base"]
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(timeout=60)
        subprocess.run(["umount", folder / "exec/netns/default"], capture_output=True)
        subprocess.run(["rm", "-rf", folder])  # some 200,000 files


def import_base(root: Path, env: dict[str, str]) -> None:
    packages = "ca-certificates,python3,python3-pip,python3-venv"
    run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", root, cwd=root.parent)
    for file in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        file.unlink()
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for name in (CERTIFICATES, "etc/resolv.conf"):
        shutil.copy(Path("/") / name, root / name)
    said = ("PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", f"SSL_CERT_FILE=/{CERTIFICATES}")
    changes = [word for line in said for word in ("--change", f"ENV {line}")]
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as packed:
        subprocess.run(["docker", "import", *changes, "-", "base"], stdin=packed.stdout, env=env, check=True)
    assert packed.returncode == 0
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The answer that has PyTorch come from loopback, where pip has its wheel at hand."""
    folder = tmp_path_factory.mktemp("index")
    with serve(folder) as address:
        yield {"pytorch_index": address} if fetch_torch(folder / "cpu/torch", PYTHON) else {}


@pytest.fixture(scope="module")
def project(template: Path, index: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of uv: its image takes what its lock says, and the devcontainer's `make setup` writes that lock."""
    folder = tmp_path_factory.mktemp("containers")
    answers = {"env_manager": "uv", "cuda": "cpu", "python_version": PYTHON, "project_name": 'A "good" one', **index}
    return generate(template, folder, None, project_slug="my-project", **answers)


def start(label: str, *command: str | Path, cwd: Path, env: dict[str, str]) -> str:
    """What it printed; how long it took is shown by pytest -rP."""
    started = time.perf_counter()
    output = run(*command, cwd=cwd, env=env).output
    print(f"{label}: {time.perf_counter() - started:.0f} s")
    return output


@pytest.mark.slow
def test_the_devcontainer_sets_itself_up_and_trains(
    engine: tuple[dict[str, str], list[str]], project: Project, tmp_path: Path
) -> None:
    env, options = engine
    shutil.copytree(ROOT / "tests/devcontainer", tmp_path / "cli")
    run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=tmp_path / "cli")
    cli = tmp_path / "cli/node_modules/.bin/devcontainer"
    file = project.path / ".devcontainer/devcontainer.json"
    text = file.read_text(encoding="utf-8")
    described = json.loads(text)
    if options:  # this engine has no other network
        described["build"] |= {"options": options[:1], "args": {"BASE": "base"}}
        described["runArgs"] += options[:1]
    file.write_text(json.dumps(described), encoding="utf-8")
    run("chown", "-R", "1000:1000", project.path, cwd=tmp_path)  # as if a person's

    def devcontainer(task: str, *more: str) -> str:
        return start(task, cli, task, "--workspace-folder", project.path, *more, cwd=tmp_path, env=env)

    try:
        up = devcontainer("up", "--remove-existing-container")
        assert "PyTorch 2.13.0+cpu, build cpu, as asked for" in up
        assert '"outcome":"success"' in up
        assert devcontainer("exec", "id", "-un").split()[-1] == "user"
        look = "from runengine.machine import check_system; print(check_system.shared_memory(None))"
        assert "state='ok'" in devcontainer("exec", ".venv/bin/python", "-c", look)
        assert (project.path / "uv.lock").stat().st_uid == 1000
        assert "uv" in devcontainer("exec", "ls", "/home/user/.cache")  # the volume is the user's
        devcontainer("exec", "make", "data")
        launch = json.loads(project.text(".vscode/launch.json"))["configurations"][0]
        printed = devcontainer("exec", ".venv/bin/python", "-m", launch["module"], *launch["args"])
        assert "best epoch 1: val/accuracy 0." in printed
    finally:
        file.write_text(text, encoding="utf-8")
        found = run(
            "docker", "ps", "-aq", "--filter", f"label=devcontainer.local_folder={project.path}", cwd=tmp_path, env=env
        )
        for container in found.output.split():
            run("docker", "rm", "--force", "--volumes", container, cwd=tmp_path, env=env)


@pytest.mark.slow
def test_an_image_is_pushed_and_named_by_its_digest(
    engine: tuple[dict[str, str], list[str]], bake: Bake, tmp_path: Path
) -> None:
    env, _ = engine
    program = shutil.which("docker-registry", path=env["PATH"])  # `bake` hides the programs of this machine
    if program is None:
        pytest.skip("a registry is not here: apt-get install docker-registry")
    project, port = bake(env_manager="venv").path, free_port()
    (project / "Dockerfile").write_text(
        "FROM scratch\nCOPY LICENSE /\n", encoding="utf-8"
    )  # what is in it does not matter
    settings = tmp_path / "registry.yml"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    settings.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}))
    with (tmp_path / "log").open("w") as log:
        registry = subprocess.Popen([program, "serve", settings], stdout=log, stderr=log)
    try:
        for tag in ("", ":v2"):  # the same image by another name
            place = f"127.0.0.1:{port}/me/project"
            printed = run("make", "image", "IMAGE=pushed", f"PUSH={place}{tag}", cwd=project, env=env).output
            pushed = re.search(r"digest: (sha256:[0-9a-f]{64})", printed)
            assert pushed
            wanted = f"train with it: launch=kubernetes launch.image={place}@{pushed[1]}"
            assert wanted in printed.splitlines()[-2:]  # under another make, the last line is make's own
    finally:
        registry.terminate()
        registry.wait()


IN_SRC = ("src/my_project/secrets.json", "src/my_project/conf/own.key", "src/own.pem", "scripts/credentials.json")


@pytest.mark.slow
def test_the_image_trains_serves_and_holds_no_secret(
    engine: tuple[dict[str, str], list[str]], project: Project, tmp_path: Path
) -> None:
    env, options = engine
    if not (project.path / "uv.lock").exists():
        run(Path(sys.executable).with_name("uv"), "lock", cwd=project.path)
    for name in (
        ".env",
        "src/.env",
        ".git/config",
        ".dvc/config.local",
        "data/raw.csv",
        "mlflow.db",
        "notes.pem",
        *IN_SRC,
    ):
        (project.path / name).parent.mkdir(exist_ok=True)
        (project.path / name).write_text(PLANTED)
    print(
        start("make image", "make", "image", f"IMAGE={IMAGE}", f"ARGS={' '.join(options)}", cwd=project.path, env=env)[
            -200:
        ]
    )

    code = "Is this machine able to train?"
    with subprocess.Popen(["docker", "save", IMAGE], env=env, stdout=subprocess.PIPE) as saved:
        assert occurrences(saved.stdout, PLANTED, code) == {code}
    assert saved.returncode == 0

    def docker(*command: str) -> str:
        return run("docker", "run", "--rm", *command, cwd=tmp_path, env=env).output

    assert docker(IMAGE, "id", "-un").split()[-1] == "user"
    programs = set(docker(IMAGE, "ls", ".venv/bin", "/usr/bin").split())
    assert {"make", "mlflow"} <= programs
    assert not {"mypy", "pytest", "ruff", "uv", "g++", "git"} & programs

    somebody = 12345  # has no name in the image, as most users of a machine
    mounts = []
    for name in ("data", "runs"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, somebody, somebody)
        mounts.append(f"--volume={tmp_path / name}:/app/{name}")
    as_somebody = ["--shm-size=1g", f"--user={somebody}:{somebody}", *mounts]
    train = [IMAGE, "make", "data", "train", "ARGS=experiment=smoke"]
    assert "best epoch 1: val/accuracy 0." in docker("--network=none", *as_somebody, *train)
    (folder,) = (tmp_path / "runs/smoke").iterdir()
    port = free_port()
    served = ["python", "-m", "runengine", "serve", f"runs/smoke/{folder.name}", f"--port={port}"]
    name = f"--name=serves-{port}"
    docker("--detach", "--network=host", name, *as_somebody, IMAGE, *served, "--host=0.0.0.0")
    try:
        example = wait_for_text(folder / "model/serving_input_example.json").encode()  # it is exported first
        probabilities = ask(f"http://127.0.0.2:{port}", example)["predictions"]  # 127.0.0.1 alone is not reached there
    finally:
        run("docker", "stop", name.removeprefix("--name="), cwd=tmp_path, env=env)
    assert (folder / "model").stat().st_uid == somebody
    assert [len(row) for row in probabilities] == [10] * len(json.loads(example)["inputs"])


def occurrences(stream: Any, *words: str) -> set[str]:
    """Which of these words are in the stream."""
    found: set[str] = set()
    rest = b""
    while block := stream.read(2**24):
        found |= {word for word in words if word.encode() in rest + block}
        rest = block[-100:]
    return found


def ask(address: str, example: bytes) -> dict[str, Any]:
    request = urllib.request.Request(f"{address}/invocations", example, {"Content-Type": "application/json"})
    for _ in range(240):
        try:
            with urllib.request.urlopen(request) as answer:
                content: dict[str, Any] = json.load(answer)
                return content
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"{address} does not answer")
