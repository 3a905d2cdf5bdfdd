"""TensorFlow next to PyTorch: the extra fits the build of PyTorch, and the two work in one process."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHOICES, QUESTIONS, Bake, extra, fit, link_environment, run, without
from packaging.requirements import Requirement

MACHINES = {
    "linux": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "arm": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "mac": {"sys_platform": "darwin", "platform_machine": "arm64"},
    "windows": {"sys_platform": "win32", "platform_machine": "AMD64"},
}
PRODUCTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import tensorflow as tf, torch
table = [[1.0, 2.0], [3.0, 4.0]]
one, other = tf.matmul(table, table).numpy().tolist(), (torch.tensor(table) @ torch.tensor(table)).tolist()
print(tf.__version__, one, other)
"""


@pytest.mark.parametrize(("cuda", "manager"), [
    (cuda, manager)
    for cuda in CHOICES["cuda"][1:]
    for manager in CHOICES["env_manager"][1:]
    if fit({"cuda": cuda, "env_manager": manager})
])  # fmt: skip
def test_the_extra_brings_cuda_only_next_to_the_same_cuda_from_pip(bake: Bake, cuda: str, manager: str) -> None:
    """Two packages that install the same libnccl.so.2 would be there otherwise."""
    wanted = [Requirement(line) for line in extra(bake(cuda=cuda, env_manager=manager).path, "tensorflow")]
    same = QUESTIONS["_builds"][cuda].get("cuda", "").startswith("12.") and manager != "conda"
    brought = {
        machine: [(each.name, *each.extras, str(each.specifier)) for each in wanted if fits(each, facts)]
        for machine, facts in MACHINES.items()
    }
    bounds = "<2.22,>=2.21"
    linux = ("tensorflow", "and-cuda", bounds) if same else ("tensorflow-cpu", bounds)
    # tensorflow-cpu has no wheels for a Mac and for Linux on aarch64, and tensorflow has no CUDA there and on Windows
    elsewhere = ("tensorflow", bounds)
    assert brought == {"linux": [linux], "arm": [elsewhere], "mac": [elsewhere], "windows": [elsewhere]}


@pytest.mark.slow
def test_tensorflow_and_pytorch_multiply_in_one_process(
    project: Path, python: Path, env: dict[str, str], tmp_path: Path
) -> None:
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    wheels = ("--dry-run", "--no-deps", "--only-binary", ":all:")
    asked = [str(python), *pip, *wheels, *extra(project, "tensorflow")]
    if subprocess.run(asked, capture_output=True, env=env).returncode != 0:
        pytest.skip(f"pip has no wheel of TensorFlow for Python {'{}.{}'.format(*sys.version_info)}")
    copy = tmp_path / "project"
    shutil.copytree(project, copy, ignore=without(project, ".venv", "runs", "mlruns", "mlflow.db"))
    link_environment(project, copy)
    before = packages(copy, env)
    run(copy / ".venv/bin/python", *pip, "--no-compile", "--editable", ".[tensorflow]", cwd=copy, env=env)
    after = packages(copy, env)
    assert {line for line in before if "my-project" not in line} < after  # nothing was replaced
    version = re.search(r"^tensorflow(?:-cpu|_cpu)?==(\S+)$", "\n".join(after), re.MULTILINE)
    assert version
    printed = run("make", "doctor", cwd=copy, env=env, expect=None).output
    assert re.search(rf"^TensorFlow +ok +TensorFlow {version[1]} multiplies on CPU:0$", printed, re.MULTILINE), printed
    for passed in ("environment", "packages", "arithmetic", "libraries"):
        assert not re.search(rf"^{passed} +(fail|unknown)", printed, re.MULTILINE), printed
    product = [[7.0, 10.0], [15.0, 22.0]]
    for order in (("torch", "tensorflow"), ("tensorflow", "torch")):
        said = run(copy / ".venv/bin/python", "-c", PRODUCTS, *order, cwd=copy, env=env).output
        assert said.splitlines()[-1] == f"{version[1]} {product} {product}"
    shutil.rmtree(copy / ".venv")  # a gigabyte


def fits(requirement: Requirement, machine: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(machine)


def packages(project: Path, env: dict[str, str]) -> set[str]:
    freeze = (project / ".venv/bin/python", "-m", "pip", "freeze", "--disable-pip-version-check")
    return set(run(*freeze, cwd=project, env=env).output.splitlines())
