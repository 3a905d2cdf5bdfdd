"""Is this machine able to train? One line for each thing that can be wrong, with what mends it.

    python -m ml_project.doctor            # make doctor
    python -m ml_project.doctor --fix      # the commands that mend what is wrong; it runs none

Exit status: 0 all is well, 1 something is wrong, 2 nothing is wrong as far as could be told.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..settings.cpu_limits import allowed_cores, memory_left
from ..settings.errors import INTERRUPTED
from ..settings.console import first_line
from .collect_env import SIGNIFICAND_BITS, SOURCE, SPEED_BYTES, TERMS, Machine, Reading, ask

WORDS = {"well": "well", "wrong": "WRONG", "unknown": "could not tell", "skipped": "skipped"}
GIB = 2**30
LOCKS = {"poetry": "poetry.lock", "uv": "uv.lock"}
# what PyTorch brings itself; not libcuda, the driver's, of which a newer one may be wanted there
CUDA_LIBRARIES = re.compile(
    r"lib(cudart|cublas|cublasLt|cudnn\w*|nccl|cufft|curand|cusolver|cusparse\w*|cupti|nvrtc|nvJitLink)\.so"
)
# loader processes hand batches over there: 8 of them, 2 batches each, of 64 float32 images of 3 x 224 x 224
SHARED_BYTES = 8 * 2 * 64 * 4 * 3 * 224 * 224
LEAST_MEMORY_BYTES = 2 * GIB  # a training of the default model took 0.64 GiB, nearly all of it libraries
LEAST_DISK_BYTES = 1 * GIB  # a few checkpoints; when it is full a run stops in the middle
SLOWEST_S = 2.0  # for SPEED_BYTES: at such a speed a checkpoint of 1 GB takes four minutes
LEAST_DESCRIPTORS = 1024  # Linux's own default; each tensor that waits in a loader's queue holds one
LEAST_GPU_FREE = 0.1  # of its memory
# of NVML's reasons; idle, power cap (any busy GPU's), chosen clocks and a display are no faults
SLOWED = {0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power supply's brake"}
LAUNCHERS = ("hydra_joblib_launcher", "hydra_submitit_launcher")
ANEW = "make clean-env setup"


class Result(NamedTuple):
    """`fix`: lines for a shell; advice that is no command is a comment."""

    state: str
    found: str
    why: str = ""
    fix: str = ""


class Check(NamedTuple):
    name: str
    look: Callable[[Machine], Result]
    quick: bool = False  # `make setup` ends with these


class NotRead(Exception):
    """The machine did not say: neither well nor wrong."""


def well(found: str) -> Result:
    return Result("well", found)


def skipped(found: str) -> Result:
    return Result("skipped", found)


def wrong(found: str, why: str, fix: str) -> Result:
    return Result("wrong", found, why, fix)


def value(readings: dict[str, Reading], name: str) -> Any:
    if name not in readings:
        last = list(readings.values())[-1].error if readings else ""
        raise NotRead(last or "it was not reached")
    if readings[name].error:
        raise NotRead(readings[name].error)
    return readings[name].value


def version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def size(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.0f} MiB"


def python(machine: Machine) -> Result:
    """Where setup finds no Python of the version chosen, it takes another that will do: uv and conda always find it."""
    found, asked = machine.python.version, machine.asked["python"]
    limits = machine.pyproject["project"]["requires-python"]
    least, end = (version(limit) for limit in limits.split(","))
    exact = machine.asked["env_manager"] in ("uv", "conda")
    if not least <= version(found) < end or (exact and version(found)[:2] != version(asked)):
        wanted = asked if exact else limits
        return wrong(f"Python {found}, wanted {wanted}", "packages were chosen for that", ANEW)
    return well(f"Python {found}" + ("" if version(found)[:2] == version(asked) else f", in place of {asked}"))


def environment(machine: Machine) -> Result:
    manager, found = machine.asked["env_manager"], machine.python
    place = machine.root / (".conda" if manager == "conda" else ".venv")
    maker = {"poetry": "virtualenv"}.get(manager, manager)  # Poetry lets virtualenv do it
    why = "PyTorch and the other packages may be of other versions than this project was tried with"
    if found.prefix.resolve() != place.resolve():
        fix = ". scripts/activate.sh" if place.is_dir() else "make setup"
        return wrong(f"Python runs in {found.prefix}, not in this project's {place.name}", why, fix)
    if found.made_by != maker:
        return wrong(f"{place.name} was made by {found.made_by}, but the project asks for {manager}", why, ANEW)
    lock = LOCKS.get(manager)
    if lock and not (machine.root / lock).is_file():
        return wrong(f"{lock} is missing", "another machine, or the next setup, would get other versions", "make setup")
    return well(f"{place.name}, made by {manager}" + (f" from {lock}" if lock else ""))


def packages(machine: Machine) -> Result:
    foreign = machine.python.foreign
    if not foreign:
        return well("none from outside the environment")
    return wrong(
        f"packages are also taken from {', '.join(foreign)}",
        "they may hide those of the environment, and pip then does not install what it finds there",
        "unset PYTHONPATH" if foreign[0].startswith("PYTHONPATH") else
        ANEW if "pyvenv.cfg" in foreign[0] else "export PYTHONNOUSERSITE=1",
    )  # fmt: skip


def libraries(machine: Machine) -> Result:
    if machine.asked["cuda"] == "cpu":
        return skipped("a CPU build loads no CUDA")
    folders = [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if entry]
    for folder in folders:
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            if CUDA_LIBRARIES.match(file.name):
                return wrong(
                    f"LD_LIBRARY_PATH has a CUDA of its own: {file}",
                    "it can come before the libraries that PyTorch brings; two versions of cuDNN together crash",
                    f"# Leave {folder} out (module unload cuda?), or:\nunset LD_LIBRARY_PATH",
                )
    return well("no CUDA on LD_LIBRARY_PATH")


def build(machine: Machine) -> Result:
    asked, gpus, reading = machine.asked["cuda"], machine.smi.gpus, machine.torch.get("build", Reading())
    if reading.error:
        return wrong(f"PyTorch cannot be loaded: {reading.error}", "nothing can be trained", ANEW)
    torch = value(machine.torch, "build")
    found = "cu" + torch["cuda"].replace(".", "") if torch["cuda"] else "cpu"
    if found == "cpu" and gpus and not (machine.quick and asked == "cpu"):  # chosen so: no reason to refuse the setup
        return wrong(
            f"CPU wheel on a GPU machine: PyTorch {torch['version']}, but {gpus[0][0]} is here",
            "training uses the CPU only",
            "make switch CUDA=auto" if asked == "cpu" else ANEW,
        )
    if not same_build(found, asked, conda=machine.python.made_by == "conda"):
        return wrong(
            f"PyTorch {torch['version']} is the build {found}, but pyproject.toml asks for {asked}",
            "it may not run on the GPUs that the project is for",
            ANEW,
        )
    return well(f"PyTorch {torch['version']}, build {found}, as asked for")


def same_build(found: str, asked: str, *, conda: bool) -> bool:
    """Conda's builds have another minor version of CUDA (12.9 for cu126): there the major one counts."""
    return found == asked or (conda and found[:-1] == asked[:-1] != "cp")


def driver(machine: Machine) -> Result:
    smi, least = machine.smi, machine.asked["driver"]
    if machine.asked["cuda"] == "cpu":
        return skipped("a CPU build needs none")
    if not smi.gpus and re.search("driver|NVML", smi.reason):
        return wrong(
            smi.reason, "no GPU can be used", "# Restart the machine; if that does not help, install the driver"
        )
    if not smi.gpus:
        return skipped(f"no GPU: {smi.reason}. Fine on a login node: this build finds one where the project runs")
    if version(smi.driver) >= version(least):
        return well(f"driver {smi.driver}; this build needs {least}")
    if machine.torch.get("gpus", Reading({})).value.get("gpus"):
        return well(f"driver {smi.driver} is older than {least}, but PyTorch can use it (CUDA's compat libraries)")
    return wrong(
        f"driver too old for this build: have {smi.driver}, need {least}",
        "PyTorch finds no GPU",
        f"# Update NVIDIA's driver to {least} or newer, or take a build for the one you have:\nmake switch CUDA=auto",
    )


def gpus(machine: Machine) -> Result:
    if machine.asked["cuda"] == "cpu" or not machine.smi.gpus:
        return skipped("this build uses none" if machine.asked["cuda"] == "cpu" else "there is none")
    seen = value(machine.torch, "gpus")
    for name, capability in seen["gpus"] or machine.smi.gpus:
        if capability and not has_code(capability, seen["archs"], machine.asked["capability"]):
            return wrong(
                f"wheel has no code for this GPU: {name}, compute capability {capability}; "
                f"it has {' '.join(seen['archs']) or machine.asked['capability']}",
                "every computation there fails",
                "make switch CUDA=auto",
            )
    if not seen["gpus"]:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return wrong(
            f"PyTorch can use none of the {len(machine.smi.gpus)} GPUs"
            + (f": {seen['reason']}" if seen["reason"] else ""),
            "training uses the CPU only",
            "# See `driver`" if hidden is None else f"unset CUDA_VISIBLE_DEVICES  # it is {hidden!r}",
        )
    return well("; ".join(f"{name}, compute capability {capability}" for name, capability in seen["gpus"]))


def has_code(capability: str, archs: list[str], limits: str) -> bool:
    """By the list of the wheel (`sm_90`: for 9.0 and later minors; `compute_90`: and for all later ones), else by the
    limits of the build, such as `5.0-9.0` or `7.5-`."""
    major, minor = version(capability)
    if not archs:
        least, greatest = (version(limit) for limit in limits.split("-"))
        return least <= (major, minor) and (not greatest or (major, minor) <= greatest)
    for arch in archs:
        kind, digits, only = re.fullmatch(r"([a-z]+)_(\d+)([af]?)", arch).groups()  # type: ignore[union-attr]
        of = int(digits[:-1]), int(digits[-1])
        if of == (major, minor) or (only != "a" and of <= (major, minor) and (kind == "compute" or of[0] == major)):
            return True
    return False


def arithmetic(machine: Machine) -> Result:
    return compare(machine, set(SIGNIFICAND_BITS))


def convolution(machine: Machine) -> Result:
    return compare(machine, {"convolution"})


def compare(machine: Machine, kinds: set[str]) -> Result:
    """Relative errors against float64, beside what rounding explains."""
    good, unknown = [], []
    for name, (error, said, fault) in machine.torch.items():
        device, _, kind = name.partition(" ")
        if kind not in kinds:
            continue
        if "no kernel image" in said:
            return wrong(f"wheel has no code for this GPU ({device})", "nothing runs there", "make switch CUDA=auto")
        if said and fault:
            return wrong(
                f"{name} fails: {said}", "training would fail, too", "# See `driver`, `libraries`; then:\n" + ANEW
            )
        if said:
            unknown.append(f"{name}: {said}")
        elif not error <= tolerance(device, kind):  # NaN is no small error
            return wrong(
                f"{name} is wrong: relative error {error:.0e}, at most {tolerance(device, kind):.0e} is rounding",
                "what is trained there is not to be trusted",
                "# Update the driver; if it stays, the hardware is broken",
            )
        else:
            good.append(f"{name} {error:.0e}")
    if unknown or not good:
        value(machine.torch, "build")
        raise NotRead("; ".join(unknown) or list(machine.torch.values())[-1].error or "nothing was computed")
    return well(f"relative errors: {', '.join(good)}")


def tolerance(device: str, kind: str) -> float:
    """Twice sqrt(TERMS) u, which rounding at random makes of a sum of TERMS (Higham and Mary 2019).

    cuDNN computes in TF32; other convolutions may take Winograd's way, which costs about three bits.
    """
    bits = SIGNIFICAND_BITS.get(kind) or (SIGNIFICAND_BITS["tf32"] if device.startswith("cuda") else 21)
    return 2 * math.sqrt(TERMS) * 2.0**-bits


def compiling(machine: Machine) -> Result:
    reading = machine.compile.get("compile", Reading())
    why = "only compile=true needs it"
    if "CppCompiler" in reading.error or "C++ compiler" in reading.error or "InvalidCxx" in reading.error:
        return wrong(
            "torch.compile finds no C++ compiler", why, "# For example on Debian and Ubuntu:\nsudo apt install g++"
        )
    if reading.fault or "Error" in reading.error:
        return wrong(f"torch.compile fails: {reading.error}", why, "# Leave compile=false")
    return well(f"torch.compile compiled a function in {value({'compile': reading}, 'compile'):.0f} s")


def together(machine: Machine) -> Result:
    seen = value(machine.torch, "gpus")
    num = len(seen["gpus"])
    if num < 2:
        return skipped("there are no two GPUs")
    reading = machine.collective.get("collective", Reading())
    if reading.error or reading.value != num * (num + 1) / 2:
        return wrong(
            f"NCCL over {num} GPUs: {reading.error or f'the sum is {reading.value}, not {num * (num + 1) / 2}'}",
            "trainer=ddp and trainer=fsdp need it",
            "# Try NCCL_P2P_DISABLE=1; NCCL_DEBUG=INFO tells more",
        )
    peers = f", no direct way between {seen['no_peer']}: through the CPU's memory, slower" if seen["no_peer"] else ""
    return well(f"NCCL adds over {num} GPUs{peers}")


def pinned(machine: Machine) -> Result:
    names = [name for name in machine.torch if name.endswith(" pinned")]
    if not names:
        return skipped("there is no GPU")
    bad = [name for name in names if machine.torch[name].error or not machine.torch[name].value]
    if bad:
        said = machine.torch[bad[0]].error or "the numbers came out differently"
        return wrong(f"{bad[0]}: {said}", "data cannot be copied beside the computation", "ulimit -l unlimited")
    return well("pinned memory reaches each GPU")


def shared_memory(machine: Machine, folder: str = "/dev/shm") -> Result:  # noqa: S108
    if not Path(folder).is_dir():
        return skipped(f"there is no {folder}")
    system = os.statvfs(folder)
    free = system.f_bavail * system.f_frsize
    if free >= SHARED_BYTES:
        return well(f"{size(free)} free in {folder}")
    return wrong(
        f"{size(free)} free in {folder}, {size(SHARED_BYTES)} wanted",
        "8 loader processes keep 2 batches each there (64 images of 3 x 224 x 224), or die of a bus error",
        "# docker run --shm-size=1g (its default is 64 MB), or leave data.num_workers=0, or:\n"
        f"sudo mount -o remount,size=1G {folder}",
    )


def gpu_memory(machine: Machine) -> Result:
    if not machine.smi.gpus:
        return skipped("there is no GPU")
    said = []
    for index, reading in machine.nvml.items():
        gpu = value({index: reading}, index)
        held = ", ".join(f"{name} {pid}" + (f" {size(used)}" if used else "") for name, pid, used in gpu["holders"])
        said.append(
            f"GPU {index}: {size(gpu['free'])} of {size(gpu['total'])} free" + (f", held by {held}" if held else "")
        )
        if gpu["free"] < LEAST_GPU_FREE * gpu["total"]:
            pids = " ".join(str(pid) for _, pid, _ in gpu["holders"])
            return wrong(
                said[-1],
                "a training would end with: out of memory",
                "# Take another GPU with CUDA_VISIBLE_DEVICES, or end what holds it, if it is yours:"
                + (f"\nkill {pids}" if pids else ""),
            )
    return well("; ".join(said))


def gpu_clocks(machine: Machine) -> Result:
    if not machine.smi.gpus:
        return skipped("there is no GPU")
    for index, reading in machine.nvml.items():
        reasons = value({index: reading}, index)["reasons"]
        if reasons is None:
            return skipped(f"GPU {index} does not tell")
        if slowed := [name for bit, name in SLOWED.items() if reasons & bit]:
            return wrong(
                f"GPU {index} is slowed down: {', '.join(slowed)}",
                "training takes longer than it should",
                "# Look at its cooling and power supply: nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER",
            )
    return well("not slowed down")


def cores(machine: Machine) -> Result:
    allowed, reason = allowed_cores()
    threads = value(machine.torch, "build")["num_threads"]
    found = f"{allowed} of {os.cpu_count()} cores may be used (set by {reason}); PyTorch takes {threads}"
    if threads and threads > allowed:
        return wrong(found, "threads that wait for each other's cores are slow", f"export OMP_NUM_THREADS={allowed}")
    return well(found)


def memory(machine: Machine) -> Result:
    import psutil

    here = psutil.virtual_memory()
    total, left, whose = here.total, here.available, "this machine"
    if (group := memory_left()) and group[1] < left:
        (total, left), whose = group, "the cgroup of this process"
    found = f"{size(left)} of {size(total)} free ({whose})"
    if left < LEAST_MEMORY_BYTES:
        return wrong(
            found, f"below {size(LEAST_MEMORY_BYTES)} the system may kill the training",
            "# Ask for more (sbatch --mem=16G, docker run --memory=16g), or end other programs",
        )  # fmt: skip
    return well(found)


def disk(machine: Machine) -> Result:
    said: dict[int, str] = {}
    for place, (here, error, _) in machine.disk.items():
        if error:
            return wrong(f"{place}: {error}", "data and runs are written there", f"df -h {place} .; ls -ld {place} .")
        found = (
            f"{here['folder']}: {size(here['free'])} free, {size(SPEED_BYTES)} written in {here['write_s']:.2f} s, "
            f"read in {here['read_s']:.2f} s"
        )
        if here["free"] < LEAST_DISK_BYTES or not here["same"]:
            why = (
                f"below {size(LEAST_DISK_BYTES)} a run may stop in the middle"
                if here["same"]
                else "what is read differs"
            )
            return wrong(found, why, "du -sh data runs .venv ~/.cache/pip | sort -h")
        if max(here["write_s"], here["read_s"]) > SLOWEST_S:
            return wrong(
                found, "each checkpoint waits for the disk", "# Keep data/ and runs/ on a local disk, linked here"
            )
        said.setdefault(here["device"], found)
    return well("; ".join(said.values()).replace(f"{Path.cwd()}", "."))


def descriptors(machine: Machine) -> Result:
    try:
        from resource import RLIMIT_NOFILE, getrlimit
    except ImportError:  # Windows
        return skipped("this system has no limit on open files")
    soft, hard = getrlimit(RLIMIT_NOFILE)
    if soft == -1 or soft >= LEAST_DESCRIPTORS:
        return well("no limit" if soft == -1 else f"up to {soft} at a time")
    can = hard == -1 or hard >= LEAST_DESCRIPTORS
    return wrong(
        f"only {soft} open files at a time, {LEAST_DESCRIPTORS} wanted",
        "each tensor that waits in a loader's queue holds one, and each connection between processes",
        f"ulimit -n {LEAST_DESCRIPTORS}" if can else "# Ask who runs this machine for a higher `ulimit -Hn`",
    )


def mlflow(machine: Machine) -> Result:
    readings = machine.mlflow
    if "address" in readings and not readings["address"].error and not readings["address"].value:
        return skipped("tracking is off")
    why = "metrics stay in the run's folder until `make sync`"
    if (server := readings.get("server")) and not server.error:
        if server.value["trouble"]:
            return wrong(server.value["trouble"], why, "# Look at MLFLOW_TRACKING_URI and the network")
        said = f", version {server.value['server']} (here {server.value['client']})" if server.value["server"] else ""
        return well(f"{server.value['uri']} answers{said}")
    database = readings.get("database", Reading())
    if database.error.startswith(("sqlite3", "OperationalError", "DatabaseError", "PermissionError")):
        file = str(readings["address"].value).removeprefix("sqlite:///")
        return wrong(
            f"{file}: {database.error}", why,
            f"# Look at its owner; a damaged one is made anew, and `make sync` fills it:\nmv {file} {file}.old",
        )  # fmt: skip
    found = value(readings, "database")
    if not found["exists"]:
        if not found["writable"]:
            return wrong(f"{found['file']} cannot be made there", why, "# Choose another folder, or change its owner")
        return well(f"{found['file']} is not there yet: the first run makes it")
    if found["found"] != [found["head"]]:
        is_ = "newer" if not found["known"] else "older"
        return wrong(
            f"the tables of {found['file']} are of a{'' if is_ == 'newer' else 'n'} {is_} MLflow "
            f"({' '.join(found['found'])}, wanted {found['head']})",
            why,
            f"# Keep a copy first\ncp {found['file']} {found['file']}.old\nmlflow db upgrade sqlite:///{found['file']}"
            if is_ == "older" else "# Take that MLflow into pyproject.toml, or begin anew (make sync fills it):\n"
            f"mv {found['file']} {found['file']}.newer",
        )  # fmt: skip
    return well(f"{found['file']} can be written, its tables are those of this MLflow")


def dvc(machine: Machine) -> Result:
    if not (machine.root / ".dvc").is_dir():
        return skipped("this is no project of DVC")
    readings = machine.dvc
    reading = readings.get("remote", Reading())
    why = "`make push` and `make pull` need it"
    if reading.error:
        return wrong(f"the remote does not answer: {reading.error}", why, "make push ARGS=-v  # says more")
    remote = value(readings, "remote")
    if remote["name"] is None:
        return skipped("no remote is set")
    if remote["never_set"]:
        address = f"dvc remote modify {remote['name']} url <address>"
        return wrong(f"the address of the remote was never set: {remote['url']}", why, f"# {address}")
    absent = ", which the first `make push` makes" if remote["local"] else " answers; nothing is there yet"
    return well(f"{remote['url']}" + ("" if remote["exists"] else absent))


def git(machine: Machine) -> Result:
    at = ["git", "-C", str(machine.root)]
    answer = ask(*at, "rev-parse", "--git-dir")
    if answer.status is None:
        return skipped(f"git: {answer.errors}")
    if "dubious ownership" in answer.errors:
        fix = f"git config --global --add safe.directory {machine.root}"
        return wrong("this folder belongs to another user, so git refuses it", "runs record no commit", fix)
    if "not a git repository" in answer.errors:
        return skipped("no Git repository, which is fine; runs then record no commit")
    missing = [
        f'git config --global user.{key} "{example}"'
        for key, example in {"name": "Your Name", "email": "you@example.com"}.items()
        if not ask(*at, "config", f"user.{key}").output.strip() and not os.environ.get(f"GIT_AUTHOR_{key.upper()}")
    ]
    if missing:
        return wrong("git does not know who you are", "commits, also those of `dvc exp`, fail", "\n".join(missing))
    return well("git knows who you are")


def hydra(machine: Machine) -> Result:
    reading = machine.hydra.get("plugins", Reading())
    if reading.error:
        return wrong(f"a plugin of Hydra cannot be loaded: {reading.error}", "sweeps and launch=... fail", ANEW)
    found = [name.split(".")[1] for name in reading.value]
    missing = [name for name in (f"{__package__}_sweep", *LAUNCHERS) if name not in found]
    if missing:
        return wrong(f"Hydra does not find {', '.join(missing)}", "sweeps and launch=... fail", ANEW)
    return well("the sweeper of this project, and launchers for processes (joblib) and Slurm (submitit)")


def tensorflow(machine: Machine) -> Result:
    readings = machine.tensorflow
    if not readings:
        return skipped("not installed")
    found = value(readings, "build")
    if machine.smi.gpus and not found["num_gpus"]:
        built = "its build has CUDA, but it finds no GPU" if found["cuda"] else "a build without CUDA"
        return wrong(
            f"TensorFlow {found['version']}: {built}", "it uses the CPU only", "pip install 'tensorflow[and-cuda]'"
        )
    for device, reading in readings.items():
        if reading.error or not reading.value:
            said = reading.error or "multiplies wrongly"
            return wrong(f"TensorFlow {found['version']} on {device}: {said}", "it cannot be used there", ANEW)
    return well(
        f"TensorFlow {found['version']} multiplies on {', '.join(name for name in readings if name != 'build')}"
    )


# in the order in which they would stop a new user
CHECKS = (
    Check("python", python, quick=True),
    Check("environment", environment, quick=True),
    Check("packages", packages, quick=True),
    Check("PyTorch", build, quick=True),
    Check("driver", driver, quick=True),
    Check("GPUs", gpus, quick=True),
    Check("arithmetic", arithmetic, quick=True),
    Check("libraries", libraries),
    Check("convolution", convolution),
    Check("disk", disk),
    Check("MLflow", mlflow),
    Check("Hydra", hydra),
    Check("DVC", dvc),
    Check("git", git),
    Check("cores", cores),
    Check("memory", memory),
    Check("shared memory", shared_memory),
    Check("open files", descriptors),
    Check("GPU memory", gpu_memory),
    Check("GPU clocks", gpu_clocks),
    Check("pinned memory", pinned),
    Check("several GPUs", together),
    Check("torch.compile", compiling),
    Check("TensorFlow", tensorflow),
)


def examine(check: Check, machine: Machine) -> Result:
    """Whatever goes wrong in a check is said of that check: the doctor himself does not fall ill."""
    try:
        return check.look(machine)
    except NotRead as error:
        return Result("unknown", str(error))
    except Exception as error:
        return Result("unknown", f"{type(error).__name__}: {first_line(error)}")


def status(results: list[Result]) -> int:
    states = {result.state for result in results}
    return 1 if "wrong" in states else 2 if "unknown" in states else 0


def as_text(check: Check, result: Result) -> str:
    lines = [f"{check.name:14} {WORDS[result.state]:15} {result.found}"]
    if result.state == "wrong":
        lines.append(f"{'':14} {'why:':>15} {result.why}")
        for number, line in enumerate(result.fix.splitlines()):
            lines.append(f"{'':14} {'' if number else 'do:':>15} {line.removeprefix('# ')}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}.doctor", description="Is this machine able to train?"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--fix", action="store_true", help="print the commands that mend what is wrong; run none")
    parser.add_argument(
        "--quick", action="store_true", help="only whether the environment is the right one and computes"
    )
    arguments = parser.parse_args()
    machine = Machine(SOURCE.parent, quick=arguments.quick)
    found: list[tuple[Check, Result]] = []
    try:
        for check in CHECKS:
            if check.quick or not arguments.quick:
                found.append((check, examine(check, machine)))
                if not (arguments.json or arguments.fix):
                    print(as_text(*found[-1]), flush=True)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    ends = status([result for _, result in found])
    if arguments.json:
        checks = [{"check": check.name, **result._asdict()} for check, result in found]
        print(json.dumps({"status": ends, "checks": checks}, indent=2))
    elif arguments.fix:
        for check, result in found:
            if result.state == "wrong":
                print(f"# {check.name}: {result.found}\n{result.fix}")
    else:
        print(last_line(found))
    sys.exit(ends)


def last_line(found: list[tuple[Check, Result]]) -> str:
    names = {
        state: ", ".join(check.name for check, result in found if result.state == state)
        for state in ("wrong", "unknown")
    }
    if names["wrong"]:
        return f"\nWrong: {names['wrong']}. The commands alone: make doctor ARGS=--fix"
    if names["unknown"]:
        return f"\nNothing is wrong, but this could not be told: {names['unknown']}."
    return "\nAll is well."


if __name__ == "__main__":
    main()
