"""Read the state of this machine, which the checks of the doctor then judge.

    python -m runengine.machine.collect_env torch    # one of PROBES, in a process of its own: some can hang, or crash

This module imports only the standard library; each probe imports what it reads.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..settings import project
from .collect_services import disk_steps, dvc_steps, hydra_steps, mlflow_steps, nvml_steps, tensorflow_steps
from .collect_torch import collective_steps, compile_steps, torch_steps
from .readings import Reading, Steps, report

SOURCE = project.ENGINE_FOLDER.parent  # a child finds the engine there
LIMITS_S = {"torch": 120, "compile": 180, "collective": 60, "mlflow": 60, "dvc": 30, "tensorflow": 120}
LIMIT_S = 20  # for the other probes: they take a second, but a network file system may never answer
WSL_DRIVER = "/usr/lib/wsl/lib"  # where WSL keeps nvidia-smi, not always on PATH


class Answer(NamedTuple):
    """What a command printed. Status None: it could not be started, or did not end in time; `errors` says which."""

    status: int | None
    output: str
    errors: str


class Smi(NamedTuple):
    """What nvidia-smi lists: GPUs as (name, compute capability), the driver; or why there are none."""

    gpus: tuple[tuple[str, str], ...]
    driver: str
    reason: str


class Python(NamedTuple):
    version: str
    prefix: Path
    made_by: str  # the program that made the environment
    foreign: tuple[str, ...]  # why packages from elsewhere are found


class Machine:
    """Each thing is read once, when it is first asked for; a test puts recorded readings in their place."""

    def __init__(self, root: Path, *, quick: bool = False) -> None:
        self.root, self.quick = root, quick

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        return tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))

    @property
    def asked(self) -> dict[str, str]:
        """What the project was generated for."""
        asked: dict[str, str] = self.pyproject["tool"]["ml-template"]
        return asked

    @cached_property
    def python(self) -> Python:
        return python(self.root)

    @cached_property
    def smi(self) -> Smi:
        return smi()

    @cached_property
    def torch(self) -> dict[str, Reading]:
        return child("torch", *(["quick"] if self.quick else []))

    @cached_property
    def collective(self) -> dict[str, Reading]:
        return child("collective", "nccl", str(len(self.torch["gpus"].value["gpus"])))

    @cached_property
    def compile(self) -> dict[str, Reading]:
        return child("compile")

    @cached_property
    def nvml(self) -> dict[str, Reading]:
        return child("nvml")

    @cached_property
    def disk(self) -> dict[str, Reading]:
        return child("disk", "data", "runs")

    @cached_property
    def mlflow(self) -> dict[str, Reading]:
        return child("mlflow")

    @cached_property
    def dvc(self) -> dict[str, Reading]:
        return child("dvc", str(self.root))

    @cached_property
    def hydra(self) -> dict[str, Reading]:
        return child("hydra")

    @cached_property
    def tensorflow(self) -> dict[str, Reading]:
        return child("tensorflow") if find_spec("tensorflow") else {}


def ask(*command: str, limit_s: float = LIMIT_S, env: dict[str, str] | None = None) -> Answer:
    """Run a command until it ends or the limit is reached; then kill it with the processes it has started."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, "", error.strerror or str(error))
    try:
        output, errors = process.communicate(timeout=limit_s)
        return Answer(process.returncode, output, errors)
    except subprocess.TimeoutExpired:
        _end(process)
        try:
            output, _ = process.communicate(timeout=2)
        except subprocess.TimeoutExpired:  # it waits for a disk that does not answer: even SIGKILL has to wait
            output, process.returncode = "", -signal.SIGKILL
        return Answer(None, output, f"no answer within {limit_s:g} s")
    except KeyboardInterrupt:
        _end(process)
        raise


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the process and its children."""
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def child(probe: str, *arguments: str) -> dict[str, Reading]:
    """The readings of one of PROBES, by name. If the process failed, the last one says how it ended."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
    }
    command = [sys.executable, "-m", f"{__package__}.collect_env", probe, *arguments]
    return parse_child(ask(*command, limit_s=LIMITS_S.get(probe, LIMIT_S), env=env), probe)


def parse_child(answer: Answer, probe: str) -> dict[str, Reading]:
    readings: dict[str, Reading] = {}
    begun = probe
    for line in answer.output.splitlines():
        if line.startswith('{"begins": '):
            begun = json.loads(line)["begins"]
        elif line.startswith('{"ends": '):
            readings[json.loads(line).pop("ends")] = Reading(**json.loads(line)["reading"])
    if answer.status is None:
        readings[begun] = Reading(error=answer.errors)
    elif answer.status < 0:  # illegal instruction, segmentation fault, killed for its memory
        readings[begun] = Reading(error=f"the process was ended by {signal.Signals(-answer.status).name}", fault=True)
    elif answer.status > 0:
        readings[begun] = Reading(error=(answer.errors.strip().splitlines() or ["it ended without a message"])[-1])
    return readings


def smi() -> Smi:
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=WSL_DRIVER)
    if program is None:
        return Smi((), "", "there is no nvidia-smi")
    query = "driver_version,compute_cap,name"
    answer = ask(program, f"--query-gpu={query}", "--format=csv,noheader")
    if "not a valid field" in answer.output:  # drivers before 510 do not report the compute capability
        answer = ask(program, f"--query-gpu={query.replace('compute_cap,', '')}", "--format=csv,noheader")
    return parse_smi(answer)


def parse_smi(answer: Answer) -> Smi:
    """The answer of `nvidia-smi --query-gpu=driver_version,compute_cap,name --format=csv,noheader`."""
    gpus, driver = [], ""
    for line in answer.output.splitlines():
        if fields := re.fullmatch(r"([\d.]+), (?:(\d+\.\d+|\[?N/A\]?), )?(.+)", line.strip()):
            driver, capability, name = fields.groups()
            gpus.append((name, capability if capability and "N" not in capability else ""))
    if gpus:
        return Smi(tuple(gpus), driver, "")
    said = (answer.output + answer.errors).strip().splitlines() or ["it printed nothing"]
    return Smi((), "", f"nvidia-smi: {said[0][:150]}")


def python(root: Path) -> Python:
    """The interpreter that runs this."""
    prefix = Path(sys.prefix)
    config = prefix / "pyvenv.cfg"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    settings = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in text.splitlines())}
    made_by = next((name for name in ("uv", "virtualenv") if name in settings), "venv" if settings else "no manager")
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


PROBES: dict[str, Callable[..., Steps]] = {
    "torch": torch_steps,
    "compile": compile_steps,
    "collective": collective_steps,
    "nvml": nvml_steps,
    "disk": disk_steps,
    "mlflow": mlflow_steps,
    "dvc": dvc_steps,
    "hydra": hydra_steps,
    "tensorflow": tensorflow_steps,
}


if __name__ == "__main__":
    report(PROBES[sys.argv[1]](*sys.argv[2:]))
