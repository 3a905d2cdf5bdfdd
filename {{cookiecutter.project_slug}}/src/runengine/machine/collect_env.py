"""Read the state of this machine, which the checks of the doctor then judge.

    python -m runengine.machine.collect_env torch    # one of PROBES, in a process of its own: some can hang, or crash

This module imports only the standard library; each probe imports what it reads.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import site
import sys
import tomllib
from collections.abc import Callable
from functools import cached_property, partial
from importlib.util import find_spec
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any, NamedTuple

from ..settings import project, torch_build
from .collect_nvml import nvml_steps
from .collect_services import disk_steps, dvc_remote, hydra_plugins, mlflow_steps, tensorflow_steps
from .collect_torch import compiled, summed, torch_steps
from .readings import Readings, ask, parse, report

SOURCE = project.ENGINE_FOLDER.parent  # a child finds the engine there
CUDA_LIBRARY = re.compile(r"/lib(nccl|cudnn\w*|cublas\w*|cudart|cufft|cusparse|cusolver|nvrtc)\.so\.\d+$")
WSL_DRIVER = "/usr/lib/wsl/lib"  # where WSL keeps NVIDIA's driver; not every distribution looks there


class Python(NamedTuple):
    version: str
    prefix: Path
    made_by: str  # the program that made the environment
    foreign: tuple[str, ...]  # why packages from elsewhere are found


def _readings(probe: str, arguments: Callable[[Machine], list[str]] = lambda _: []) -> cached_property[Readings]:
    return cached_property(lambda machine: child(probe, *arguments(machine)))


class Machine:
    """Each thing is read once, when it is first asked for; a test puts recorded readings in their place."""

    def __init__(self, root: Path, *, quick: bool = False) -> None:
        self.root, self.quick = root, quick

    nvml = _readings("nvml")
    torch = _readings("torch", lambda machine: ["quick"] if machine.quick else [])
    collective = _readings("collective", lambda machine: ["cuda", str(len(machine.torch["gpus"].value["gpus"]))])
    compile = _readings("compile")
    disk = _readings("disk", lambda _: ["data", "runs"])
    mlflow = _readings("mlflow")
    dvc = _readings("dvc", lambda machine: [str(machine.root)])
    hydra = _readings("hydra")

    @cached_property
    def tensorflow(self) -> Readings:
        return child("tensorflow") if find_spec("tensorflow") else {}

    @cached_property
    def python(self) -> Python:
        return python(self.root)

    @cached_property
    def torchvision(self) -> tuple[str, str] | None:
        """What does not fit, and the command that installs what does."""
        return torch_build.mismatch(self.root)

    @cached_property
    def shared_files(self) -> dict[str, tuple[str, str]]:
        """Libraries of CUDA that two packages have installed at the same place: the file and the packages."""
        owners: dict[str, str] = {}
        twice = {}
        for package in importlib.metadata.distributions():
            name = str(package.metadata["Name"])
            for file in package.files or [] if name.startswith("nvidia-") else []:
                if CUDA_LIBRARY.search(file.as_posix()) and owners.setdefault(file.as_posix(), name) != name:
                    twice[file.as_posix()] = (owners[file.as_posix()], name)
        return twice

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        return tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))

    @property
    def asked(self) -> dict[str, str]:
        """What the project was generated for."""
        asked: dict[str, str] = self.pyproject["tool"]["ml-template"]
        return asked

    @property
    def gpus(self) -> list[tuple[str, str]]:
        """Name and compute capability of each GPU that the driver lists."""
        return [tuple(gpu.value) for name, gpu in self.nvml.items() if re.fullmatch(r"GPU \d+", name) and gpu.value]


def child(probe: str, *arguments: str) -> Readings:
    """The readings of one of PROBES, by name. If the process failed, the last one says how it ended."""
    env = {**os.environ, "PYTHONPATH": _paths(str(SOURCE), os.environ.get("PYTHONPATH"))}
    if probe == "nvml":
        env["LD_LIBRARY_PATH"] = _paths(os.environ.get("LD_LIBRARY_PATH"), WSL_DRIVER)
    command = [sys.executable, "-m", f"{__package__}.collect_env", probe, *arguments]
    return parse(ask(*command, limit_s=PROBES[probe].limit_s, env=env), probe)


def _paths(*folders: str | None) -> str:
    return os.pathsep.join(filter(None, folders))


def python(root: Path) -> Python:
    """The interpreter that runs this."""
    prefix = Path(sys.prefix)
    config = prefix / "pyvenv.cfg"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    settings = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in text.splitlines())}
    makers = ("wheelhouse", "uv", "virtualenv")  # the first is said by scripts/wheelhouse.py
    made_by = next((name for name in makers if name in settings), "venv" if settings else "no manager")
    if (prefix / "conda-meta").is_dir():
        made_by = "conda"
    foreign = [
        f"PYTHONPATH={folder}"
        for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if folder and Path(folder).is_dir() and not Path(folder).resolve().is_relative_to(root.resolve())
    ]
    if site.ENABLE_USER_SITE and Path(site.getusersitepackages()).is_dir():
        foreign.append(site.getusersitepackages())
    if settings.get("include-system-site-packages") == "true":
        foreign.append("include-system-site-packages = true in .venv/pyvenv.cfg")
    return Python("{}.{}.{}".format(*sys.version_info), prefix, made_by, tuple(foreign))


class Probe(NamedTuple):
    """What is read in a child process: step by step, or by one function, whose reading has the probe's name."""

    read: Callable[..., Any]
    limit_s: float = 20  # it takes a second, but a driver or a network file system may never answer


PROBES = {
    "torch": Probe(torch_steps, 120),
    "compile": Probe(compiled, 180),
    "collective": Probe(summed, 60),
    "nvml": Probe(nvml_steps),
    "disk": Probe(disk_steps),
    "mlflow": Probe(mlflow_steps, 60),
    "dvc": Probe(dvc_remote, 30),
    "hydra": Probe(hydra_plugins),
    "tensorflow": Probe(tensorflow_steps, 120),
}


def main(name: str, *arguments: str) -> None:
    read = PROBES[name].read
    report(read(*arguments) if isgeneratorfunction(read) else iter([(name, partial(read, *arguments))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
