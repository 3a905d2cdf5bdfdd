"""What this machine has, and which answers follow from it: each fact with its source, each answer with its reason.

    python -m ml_template.machine            # the table for a bug report

Standard library only; every question to the machine has a time limit, so that all of it ends within five seconds.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

PYTHONS = ("3.11", "3.12", "3.13")  # Hydra 1.3 stops at 3.13; PyTorch 2.15 and pandas 3 start at 3.11
MANAGERS = {"poetry": ("poetry",), "conda": ("conda", "mamba", "micromamba"), "uv": ("uv",)}  # in the order of choice
MOST_BYTES = 2**20  # of an answer
LIMIT_S = 3.0  # for one command; `facts` runs them in parallel
AMD = Path("/dev/kfd")  # what AMD's driver for computing makes
AMD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")  # what it lists: processors and GPUs
JETSON = (8, 7)  # Orin: the wheels for its processor are those of servers, which run on it from CUDA 13 on
WSL_DRIVER = "/usr/lib/wsl/lib"  # where WSL keeps nvidia-smi, not always on PATH
NO_CONDA = ", and conda-forge does not have the build of PyTorch that you chose"
QUERY = "driver_version,compute_cap,memory.total,name"

Builds = Mapping[str, Mapping[str, Any]]


class Answer(NamedTuple):
    answer: str
    reason: str


class Gpu(NamedTuple):
    name: str
    capability: tuple[int, ...] | None  # (8, 6); None where the driver is too old to report it
    memory_mib: int | None


class Nvidia(NamedTuple):
    """What `nvidia-smi` says: GPUs and driver, or why there are none."""

    gpus: tuple[Gpu, ...]
    driver: str
    reason: str
    amd: tuple[str, ...] = ()  # where there is no nvidia-smi: AMD's GPUs, as the compiler calls them: gfx1100


def ask(*command: str, limit_s: float = LIMIT_S) -> tuple[int | None, str]:
    """Exit status and output of a command; None where it cannot be started, prints too much or does not end in time."""
    with tempfile.TemporaryFile() as output:  # no pipe: a child of the command may keep that open
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_english(),
                start_new_session=True,
            )
        except OSError as error:
            return None, error.strerror or str(error)
        status, ends_at, said = None, time.monotonic() + limit_s, ""
        while status is None and not said:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(0.05)
            if os.fstat(output.fileno()).st_size > MOST_BYTES:
                said = "it prints without end"
            elif time.monotonic() > ends_at:
                said = f"no answer within {limit_s:g} s"
        if said:
            with suppress(OSError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
                process.wait(1)  # not for ever: what waits for a hanging driver cannot be killed
            return None, said
        output.seek(0)
        return status, output.read().decode("utf-8", "replace").replace("\r", "").strip()


def nvidia(limit_s: float = LIMIT_S) -> Nvidia:
    """The NVIDIA GPUs of this machine, as `nvidia-smi` lists them."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=WSL_DRIVER)
    if program is None:
        gpus = amd()
        none = f"; AMD's driver is here ({AMD}), and lists no GPU" if AMD.exists() and not gpus else ""
        return Nvidia((), "", f"no nvidia-smi on this machine{none}", gpus)
    status, output = ask(program, f"--query-gpu={QUERY}", "--format=csv,noheader", limit_s=limit_s)
    if status is not None and "compute_cap" in output and "not a valid field" in output:  # drivers before 510
        fields = QUERY.replace("compute_cap,", "")
        status, output = ask(program, f"--query-gpu={fields}", "--format=csv,noheader", limit_s=limit_s)
        output = re.sub(r"^([\d.]+), ", r"\1, [N/A], ", output, flags=re.MULTILINE)
    return parse_nvidia_smi(status, output)


def amd() -> tuple[str, ...]:
    """The GPUs that AMD's driver for computing lists, of which many are parts of processors."""
    found = []
    for file in sorted(AMD_NODES.glob("*/properties")) if AMD.exists() else []:
        with suppress(OSError):  # a container may not read all of them
            said = re.search(r"^gfx_target_version (\d{5,6})$", file.read_text(encoding="utf-8"), re.MULTILINE)
            if said:  # 110000 for gfx1100, 90010 for gfx90a, 0 for a processor
                number = int(said[1])
                found.append(f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}")
    return tuple(found)


def parse_nvidia_smi(status: int | None, output: str) -> Nvidia:
    """Exit status and output of `nvidia-smi --query-gpu=driver_version,compute_cap,memory.total,name` as facts."""
    gpus, driver = [], ""
    for line in output.replace("\r", "").splitlines():
        fields = line.split(", ", 3)
        if len(fields) < 4:
            fields = line.split(",", 3)
        if len(fields) == 4 and _version(fields[0]):
            driver, capability, memory, name = fields
            gpus.append(Gpu(name.strip(), _version(capability.replace(",", ".")) or None, _number(memory)))
    if gpus:
        return Nvidia(tuple(gpus), driver, f"driver {driver}, {len(gpus)} GPU{'s' if len(gpus) > 1 else ''}")
    said = output.splitlines()[0].strip() if output else "it printed nothing"
    return Nvidia((), "", f"nvidia-smi found no GPU: {ascii(said)[1:-1][:120]}")


def choose_cuda(
    found: Nvidia,
    builds: Builds,
    manager: str = "venv",
    system: str = platform.system(),
    processor: str = platform.machine(),
) -> Answer:
    """The build of PyTorch for these GPUs and this driver.

    Args:
        found: the answer of `nvidia`.
        builds: the table of cookiecutter.json.
        manager: what makes the environment.
        system, processor: as `platform.system()` and `platform.machine()` name them.
    """
    if system == "Darwin":
        return Answer("cpu", "PyTorch for the Mac has one build, with Apple's GPUs (MPS) in it")
    if found.amd:
        return _choose_rocm(found, builds, manager, system, processor)
    if not found.gpus:
        return Answer("cpu", found.reason)
    candidates = [name for name, build in builds.items() if build.get("auto")]  # the newest CUDA last
    refusals: list[str] = []
    for name in reversed(candidates):
        misfits = unfit(found, builds[name], processor)
        if not misfits:
            return Answer(name, f"{found.gpus[0].name}, {found.reason}{_because(refusals)}")
        refusals += [f"{name}: {misfit}" for misfit in misfits]
    # no build serves all GPUs, though the driver is new enough: take the one that serves the newest of them
    for name in reversed(candidates):
        served = [gpu for gpu in found.gpus if not unfit(found._replace(gpus=(gpu,)), builds[name], processor)]
        if served:
            left = ", ".join(gpu.name for gpu in found.gpus if gpu not in served)
            return Answer(name, f"for {served[0].name}; no build serves all GPUs here, this one leaves out {left}")
    remedy = ""
    if any("driver" in refusal for refusal in refusals):
        remedy = ". Update the driver"
        if any(gpu.capability and gpu.capability >= (10,) for gpu in found.gpus):
            remedy += ", or choose conda: its CUDA 12 fits this driver"
    return Answer("cpu", "; ".join(refusals) + remedy)


def _choose_rocm(found: Nvidia, builds: Builds, manager: str, system: str, processor: str) -> Answer:
    name, build = next((name, build) for name, build in builds.items() if "gfx" in build)
    misfits = unfit(found, build, processor, system)
    if misfits:
        return Answer("cpu", f"{found.reason}; {name}: {'; '.join(misfits)}")
    gpu = f"AMD's {next(gpu for gpu in found.amd if gpu in build['gfx'])}"
    if manager == "conda":
        remedy = "with env_manager=venv, uv or poetry it is " + name
        return Answer("cpu", f"conda-forge has no build of PyTorch for {gpu}; {remedy}")
    return Answer(name, f"{gpu}; the template's makers have not run this build")


def unfit(
    found: Nvidia,
    build: Mapping[str, Any],
    processor: str = platform.machine(),
    system: str = platform.system(),
) -> list[str]:
    """Why this build does not run on these GPUs with this driver and this processor; empty if it does."""
    arm = processor.lower() in ("aarch64", "arm64")
    limits = build.get("aarch64" if arm else "capability")
    reasons = []
    if f"{system} {processor}" not in build.get("platforms", [f"{system} {processor}"]):
        reasons.append(f"it is for {' and '.join(build['platforms'])}, and this is {system} {processor}")
    if found.amd and "gfx" in build and not set(found.amd) & set(build["gfx"]):
        reasons.append(f"no code for AMD's {', '.join(found.amd)}")
    if found.gpus and "maker" in build:
        reasons.append(f"it is for {build['maker']}'s GPUs, and here is {found.gpus[0].name}")
    if found.gpus and _version(found.driver) < _version(build.get("driver", "")):
        reasons.append(f"driver {found.driver} is older than {build['driver']}, which CUDA {build['cuda']} needs")
    for gpu in dict.fromkeys(found.gpus):
        if gpu.capability is None or limits is None:
            continue
        least, greatest = (_version(limit) for limit in limits)
        number = ".".join(map(str, gpu.capability))
        if gpu.capability < least:
            reasons.append(f"no code for {gpu.name} (compute capability {number}, least {limits[0]})")
        elif greatest and gpu.capability > greatest:
            reasons.append(f"no code for {gpu.name} (compute capability {number}, greatest {limits[1]})")
        elif arm and gpu.capability == JETSON and _version(build["cuda"]) < (13,):
            reasons.append(f"CUDA {build['cuda']} for this processor is for servers, and {gpu.name} is a Jetson")
    return reasons


def choose_manager(conda: bool = True) -> Answer:
    """The first tool for environments that is here and runs; not conda, where conda-forge lacks the build."""
    for manager, programs in MANAGERS.items():
        for program in programs if conda or manager != "conda" else ():
            path = works(program)
            if path:
                return Answer(manager, f"{path} is here" + ("" if conda else NO_CONDA))
    return Answer(
        "venv", "neither poetry, conda nor uv is here" if conda else f"neither poetry nor uv is here{NO_CONDA}"
    )


def works(program: str) -> str | None:
    """Where this program is. pyenv puts stubs on PATH for programs that its chosen Python lacks: those do not count."""
    path = shutil.which(program)
    if path and Path(path).parent.name == "shims" and ask(path, "--version")[0] != 0:
        return None
    return path


def choose_python(manager: str, running: str = "{}.{}".format(*sys.version_info)) -> Answer:
    """The Python of the project: conda and uv bring their own, others need one that is here."""
    if running in PYTHONS:
        return Answer(running, "it runs cookiecutter now")
    here = [version for version in PYTHONS if version in pyenv_pythons() or works(f"python{version}")]
    if here:
        return Answer(here[-1], f"it is here; Python {running}, which runs cookiecutter now, is not supported")
    if manager in ("conda", "uv"):
        return Answer("3.12", f"{manager} brings it; Python {running}, which runs cookiecutter now, is not supported")
    return Answer("3.12", f"none of {', '.join(PYTHONS)} is here: install one before `make setup`")


def pyenv_pythons() -> list[str]:
    """The versions of Python that pyenv has, as 3.11."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    names = [folder.name for folder in root.iterdir()] if root.is_dir() else []
    return sorted({".".join(name.split(".")[:2]) for name in names if re.fullmatch(r"3\.\d+\.\d+", name)}, key=_version)


def author() -> dict[str, str]:
    """The author's name and e-mail address as Git knows them; without Git, nothing."""
    known = {}
    _, answer = ask("git", "config", "--get-regexp", r"^user\.(name|email)$")
    for line in answer.splitlines():
        setting, _, text = line.partition(" ")
        if 0 < len(text) <= 200 and text.isprintable() and "{" not in text:  # cookiecutter evaluates braces
            known[setting.replace("user.", "author_")] = text
    return {question: text for question, text in known.items() if question in ("author_name", "author_email")}


def detect(builds: Builds, conda: bool = True) -> dict[str, dict[str, Any]]:
    """What the questions need of this machine: an answer to each `auto`, and which builds do not run here and why.

    The build depends on the manager, which may be another one than is recommended: `cuda` has an answer for each.
    """
    manager, found = choose_manager(conda), nvidia()
    cuda = {name: choose_cuda(found, builds, name) for name in (*MANAGERS, "venv")}
    recommended = {
        "python_version": choose_python(manager.answer),
        "env_manager": manager,
        "cuda": cuda[manager.answer],
    }
    misfits = {name: unfit(found, build) for name, build in builds.items()}
    return {"recommended": recommended, "cuda": cuda, "misfits": misfits}


def facts() -> Iterator[tuple[str, str, str]]:
    """(what, value, source) of everything that decides, and what a maintainer asks first."""
    from concurrent.futures import ThreadPoolExecutor  # costs 5 ms, and only the bug report needs it

    programs = [name for group in MANAGERS.values() for name in group] + ["pyenv", "git", "make"]
    with ThreadPoolExecutor(len(programs) + 1) as pool:
        smi = pool.submit(nvidia)
        versions = {name: pool.submit(ask, name, "--version") for name in programs if shutil.which(name)}
        yield "system", f"{platform.system()} {platform.release()} on {platform.machine()}", "platform"
        yield "WSL", "yes" if "microsoft" in platform.release().lower() else "no", "the kernel's release"
        yield "Python", platform.python_version(), sys.executable
        yield "pyenv's Pythons", ", ".join(pyenv_pythons()) or "none", "$PYENV_ROOT or ~/.pyenv"
        for name in programs:
            status, said = versions[name].result() if name in versions else (None, "not on PATH")
            text = said.splitlines()[0] if said else "it printed nothing"
            if name in versions and status != 0:
                text = f"does not run: {text}"
            yield name, text, str(shutil.which(name))
        found = smi.result()
        yield "NVIDIA", found.reason, "nvidia-smi"
        for gpu in found.gpus:
            capability = ".".join(map(str, gpu.capability or ())) or "unknown"
            yield "GPU", f"{gpu.name}, compute capability {capability}, {gpu.memory_mib or '?'} MiB", "nvidia-smi"
        for name in found.amd:
            yield "GPU", f"AMD's {name}", str(AMD_NODES)


def _english() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _version(text: str) -> tuple[int, ...]:
    """`525.60.13` -> (525, 60, 13); () where there is no number."""
    return (
        tuple(int(part) for part in text.strip().split(".")) if re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})*\s*", text) else ()
    )


def _number(text: str) -> int | None:
    found = re.match(r"\s*(\d{1,9})\b", text)
    return int(found[1]) if found else None


def _because(refusals: Sequence[str]) -> str:
    return f" ({'; '.join(refusals)})" if refusals else ""


def main() -> None:
    for what, value, source in facts():
        print(f"{what:17}{value}   [{source}]")
    table = json.loads(Path(__file__).with_name("..").joinpath("cookiecutter.json").read_text(encoding="utf-8"))
    print()
    for question, (answer, reason) in detect(table["_builds"])["recommended"].items():
        print(f"{question:17}{answer:9}{reason}")


if __name__ == "__main__":
    main()
