"""Clouds that cannot be had here: what would be submitted is read by SkyPilot's and Azure's own code, in environments
of their own, and their own programs say what is missing."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest
from conftest import run

pytestmark = pytest.mark.slow

IMAGE = f"launch.image=registry.example.com/me/project@sha256:{'0' * 64}"
SKY = ("launch=sky", "launch.volume=s3://lab/project", "launch.gpu_type=A100", "launch.infra=aws", "launch.spot=true")
AZURE = ("launch=azureml", IMAGE, "launch.instance_type=Standard_NC24ads_A100_v4", "launch.spot=true")
TWO_NODES = ("trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2")
READ_SKY = (
    "import sys, sky, yaml; t = sky.Task.from_yaml_config(yaml.safe_load(open(sys.argv[1])));"
    "print(t.num_nodes, sorted(t.resources)[0].job_recovery if len(t.resources) else None)"
)
READ_AZURE = "import sys; from azure.ai.ml import load_job; print(load_job(sys.argv[1]).resources)"


def environment(folder: Path, *packages: str) -> Path:
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--quiet", "--python", sys.executable, folder, cwd=folder.parent)
    run(uv, "pip", "install", "--quiet", "--python", folder / "bin/python", *packages, cwd=folder.parent)
    return folder / "bin"


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("sky") / "sky", "skypilot==0.14.1")


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("azure") / "azure", "azure-ai-ml==1.35.2")


@pytest.fixture(scope="module")
def az(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("az") / "az", "azure-cli==2.91.0")


def train(project: Path, python: Path, env: dict[str, str], *settings: str, expect: int = 0) -> str:
    command = ("-m", "my_project.train", "tracking=off", *settings)
    return run(python, *command, cwd=project, env=env, expect=expect).output


def form(project: Path, python: Path, env: dict[str, str], *settings: str) -> Path:
    said = train(project, python, env, *settings, "launch.dry_run=true")
    found = re.search(r"^nothing was started\. What would be is in (\S+); to start it: ", said, re.MULTILINE)
    assert found, said
    print((project / found[1] / "000.yaml").read_text())
    return project / found[1] / "000.yaml"


def own_home(env: dict[str, str], folder: Path, *programs: Path) -> dict[str, str]:
    """Where these programs find nothing of the user, and tell nobody."""
    path = ":".join([*map(str, programs), env["PATH"]])
    off = {"SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "AZURE_CORE_COLLECT_TELEMETRY": "0"}
    return {**env, **off, "HOME": str(folder), "PATH": path}


@pytest.mark.parametrize("nodes", [(), TWO_NODES], ids=["one-node", "two-nodes"])
def test_skypilot_reads_the_task(
    nodes: tuple[str, ...], project: Path, python: Path, env: dict[str, str], sky: Path, tmp_path: Path
) -> None:
    file = form(project, python, env, *SKY, *nodes)
    home = own_home(env, tmp_path)
    printed = run(sky / "python", "-c", READ_SKY, file, cwd=project, env=home).output
    assert printed.startswith("2 " if nodes else "1 ")
    assert "'recover_on_exit_codes': [75]" in printed
    assert not (file.parent / "project/data").exists()
    assert (file.parent / "project/Makefile").exists()
    broken = tmp_path / "broken.yaml"
    broken.write_text(file.read_text().replace("job_recovery:", "job_recover:"))
    refused = run(sky / "python", "-c", READ_SKY, broken, cwd=project, env=home, expect=1).output
    assert "job_recover" in refused


@pytest.mark.parametrize("nodes", [(), TWO_NODES], ids=["one-node", "two-nodes"])
def test_azure_reads_the_job(
    nodes: tuple[str, ...], project: Path, python: Path, env: dict[str, str], azure: Path, tmp_path: Path
) -> None:
    file = form(project, python, env, *AZURE, *nodes)
    home = own_home(env, tmp_path)
    printed = run(azure / "python", "-c", READ_AZURE, file, cwd=project, env=home).output
    assert f"'instance_count': {2 if nodes else 1}" in printed
    broken = tmp_path / "broken.yaml"
    broken.write_text(file.read_text().replace("shm_size", "shm_sise"))
    refused = run(azure / "python", "-c", READ_AZURE, broken, cwd=project, env=home, expect=1).output
    assert "shm_sise" in refused


def test_skypilot_without_a_cloud_is_one_sentence(
    project: Path, python: Path, env: dict[str, str], sky: Path, tmp_path: Path
) -> None:
    """Its own server is started for that, and stopped."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 46580)) == 0:
            pytest.skip("SkyPilot's server of this machine is in use: sky api stop")
    home = own_home(env, tmp_path, sky)
    try:
        printed = train(project, python, home, *SKY, expect=1)
    finally:
        run(sky / "sky", "api", "stop", cwd=tmp_path, env=home, expect=None)
    said = "SkyPilot may use no cloud and no cluster from here. What each of them lacks: sky check"
    assert f"error: {said}\n" in printed
    assert "Traceback" not in printed


def test_an_account_that_is_not_logged_in_is_one_sentence(
    project: Path, python: Path, env: dict[str, str], az: Path, tmp_path: Path
) -> None:
    printed = train(project, python, own_home(env, tmp_path, az), *AZURE, expect=1)
    said = "Azure does not let you in: nobody is logged in. Log in: az login"
    assert f"error: {said}\n" in printed


@pytest.mark.parametrize(("launch", "sentence"), [
    (SKY, "launch=sky needs SkyPilot, which is not here. Install it outside of this environment: uv tool install "),
    (AZURE, "launch=azureml needs az, which is not here. Install it outside of this environment: uv tool install "),
])  # fmt: skip
def test_a_program_that_is_missing_is_one_sentence(
    launch: tuple[str, ...], sentence: str, project: Path, python: Path, env: dict[str, str]
) -> None:
    printed = train(project, python, {**env, "PATH": str(python.parent)}, *launch, expect=1)
    assert f"error: {sentence}" in printed
