"""Checks of the doctor: Python, its packages, and the programs around the training."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from .. import manifest
from ..settings import project
from .checks import REBUILD, Result, fail, ok, other_maker, skip, value, version
from .collect_env import Machine
from .readings import Reading, ask

LOCKS = {"poetry": "poetry.lock", "uv": "uv.lock"}
# The CUDA libraries that PyTorch brings. libcuda is left out: it is the driver's, and may be there on purpose.
CUDA_LIBRARIES = re.compile(
    r"lib(cudart|cublas|cublasLt|cudnn\w*|nccl|cufft|curand|cusolver|cusparse\w*|cupti|nvrtc|nvJitLink)\.so"
)
LAUNCHERS = ("hydra_joblib_launcher", "hydra_submitit_launcher")


def python(machine: Machine) -> Result:
    """Setup takes another supported Python where it does not find the chosen one; uv and conda always find it."""
    found, asked = machine.python.version, machine.asked["python"]
    limits = machine.pyproject["project"]["requires-python"]
    least, end = (version(limit) for limit in limits.split(","))
    exact = machine.asked["env_manager"] in ("uv", "conda")
    if not least <= version(found) < end or (exact and version(found)[:2] != version(asked)):
        wanted = asked if exact else limits
        return fail(f"Python {found}, wanted {wanted}", "the packages were chosen for that version", REBUILD)
    return ok(f"Python {found}" + ("" if version(found)[:2] == version(asked) else f", in place of {asked}"))


def environment(machine: Machine) -> Result:
    manager, found = machine.asked["env_manager"], machine.python
    place = machine.root / (".conda" if manager == "conda" else ".venv")
    maker = {"poetry": "virtualenv"}.get(manager, manager)  # Poetry makes environments with virtualenv
    why = "PyTorch and the other packages may be of other versions than this project was tried with"
    if found.prefix.resolve() != place.resolve():
        fix = ". scripts/activate.sh" if place.is_dir() else "make setup"
        return fail(f"Python runs in {found.prefix}, not in this project's {place.name}", why, fix)
    if found.made_by == "wheelhouse":
        return ok(f"{place.name}, made from a wheelhouse")
    if found.made_by != maker:
        return fail(f"{place.name} was made by {found.made_by}, but the project asks for {manager}", why, REBUILD)
    lock = LOCKS.get(manager)
    if lock and not (machine.root / lock).is_file():
        return fail(f"{lock} is missing", "another machine, or the next setup, would get other versions", "make setup")
    return ok(f"{place.name}, made by {manager}" + (f" from {lock}" if lock else ""))


def packages(machine: Machine) -> Result:
    foreign = machine.python.foreign
    if not foreign and machine.torchvision:
        found, fix = machine.torchvision
        return fail(found, "what imports it fails, and Lightning imports it where it is", fix)
    if not foreign:
        return ok("none from outside the environment")
    return fail(
        f"packages are also taken from {', '.join(foreign)}",
        "they may hide those of the environment, and pip then does not install what it finds there",
        "unset PYTHONPATH" if foreign[0].startswith("PYTHONPATH") else
        REBUILD if "pyvenv.cfg" in foreign[0] else "export PYTHONNOUSERSITE=1",
    )  # fmt: skip


def engine(machine: Machine) -> Result:
    """Edited files are fine: the engine is the project's own copy."""
    folder = manifest.here()
    found, missing = manifest.describe(folder).removeprefix("engine "), manifest.compare(folder).missing
    if missing:
        files = " ".join(shlex.quote(os.path.relpath(folder / name)) for name in missing)
        return fail(
            found,
            "commands that need a missing file fail, and without MANIFEST edits cannot be found",
            f"# Restore the missing files from Git, or replace the engine ({manifest.HOW_TO_UPGRADE}):\n"
            f"git checkout HEAD -- {files}",
        )
    return ok(found)


def libraries(machine: Machine) -> Result:
    if machine.asked["cuda"] == "cpu":
        return skip("a CPU build loads no CUDA")
    if maker := other_maker(machine):
        return skip(f"a build for {maker}'s GPUs loads no CUDA")
    folders = [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if entry]
    for folder in folders:
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            if CUDA_LIBRARIES.match(file.name):
                return fail(
                    f"LD_LIBRARY_PATH has a CUDA of its own: {file}",
                    "it can come before the libraries that PyTorch brings; two versions of cuDNN together crash",
                    f"# Remove {folder} from it (perhaps: module unload cuda), or:\nunset LD_LIBRARY_PATH",
                )
    for place, (first, second) in machine.shared_files.items():
        return fail(
            f"{first} and {second} both own {place}: the one that was installed later is loaded by both",
            "versions that do not fit together crash, or compute wrongly",
            f"# Uninstall what asked for {second} (perhaps TensorFlow: tensorflow-cpu does without), then:\n{REBUILD}",
        )
    return ok("no CUDA on LD_LIBRARY_PATH, and no library of two packages")


def mlflow(machine: Machine) -> Result:
    readings = machine.mlflow
    if "address" in readings and not readings["address"].error and not readings["address"].value:
        return skip("tracking is off")
    why = "metrics stay in the run's folder until `make sync`"
    if (server := readings.get("server")) and not server.error:
        if server.value["trouble"]:
            return fail(server.value["trouble"], why, "# Check MLFLOW_TRACKING_URI and the network")
        said = f", version {server.value['server']} (here {server.value['client']})" if server.value["server"] else ""
        return ok(f"{server.value['uri']} answers{said}")
    file = Path(str(readings.get("address", Reading()).value).removeprefix("sqlite:///"))
    error = readings.get("database", Reading()).error
    if error.startswith(("sqlite3", "OperationalError", "DatabaseError", "PermissionError")):
        return fail(
            f"{file}: {error}", why,
            "# Check who owns it; a damaged one can be moved away: "
            "the next run makes another, and `make sync` fills it:\n"
            f"mv {file} {file}.old",
        )  # fmt: skip
    state, found, wanted = value(readings, "database")
    if state == "sealed":
        return fail(f"{file} cannot be created", why, "# Choose another folder, or change its owner")
    if state == "to be made":
        return ok(f"{file} does not exist yet: the first run makes it")
    if state == "older":
        return fail(
            f"the tables of {file} are of an older MLflow ({found}, wanted {wanted})", why,
            f"# Keep a copy first\ncp {file} {file}.old\nmlflow db upgrade sqlite:///{file}",
        )  # fmt: skip
    if state == "newer":
        return fail(
            f"the tables of {file} are of a newer MLflow ({found}, wanted {wanted})", why,
            "# Write that version of MLflow into pyproject.toml, or move the file away: "
            "the next run makes another (make sync fills it):\n"
            f"mv {file} {file}.newer",
        )  # fmt: skip
    return ok(f"{file} can be written, its tables are those of this MLflow")


def dvc(machine: Machine) -> Result:
    if not (machine.root / ".dvc").is_dir():
        return skip("this project does not use DVC")
    why = "`make push` and `make pull` need it"
    remote, error, _ = machine.dvc["dvc"]
    if error:
        return fail(f"the remote does not answer: {error}", why, "make push ARGS=-v  # shows more")
    if remote["name"] is None:
        return skip("no remote is set")
    if remote["never_set"]:
        address = f"dvc remote modify {remote['name']} url <address>"
        return fail(f"the address of the remote was never set: {remote['url']}", why, f"# {address}")
    absent = ", which the first `make push` makes" if remote["local"] else " answers; nothing is there yet"
    return ok(f"{remote['url']}" + ("" if remote["exists"] else absent))


def git(machine: Machine) -> Result:
    at = ["git", "-C", str(machine.root)]
    answer = ask(*at, "rev-parse", "--git-dir")
    if answer.status is None:
        return skip(f"git: {answer.errors}")
    if "dubious ownership" in answer.errors:
        fix = f"git config --global --add safe.directory {machine.root}"
        return fail("this folder belongs to another user, so git refuses it", "runs record no commit", fix)
    if "not a git repository" in answer.errors:
        return skip("no Git repository, which is fine; runs then record no commit")
    missing = [
        f'git config --global user.{key} "{example}"'
        for key, example in {"name": "Your Name", "email": "you@example.com"}.items()
        if not ask(*at, "config", f"user.{key}").output.strip() and not os.environ.get(f"GIT_AUTHOR_{key.upper()}")
    ]
    if missing:
        return fail("git does not know who you are", "commits, also those of `dvc exp`, fail", "\n".join(missing))
    return ok("git knows who you are")


def hydra(machine: Machine) -> Result:
    plugins, error, _ = machine.hydra["hydra"]
    if error:
        return fail(f"a plugin of Hydra cannot be loaded: {error}", "sweeps and launch=... fail", REBUILD)
    found = {name.split(".")[1] for name in plugins}
    missing = [name for name in (project.ENGINE, *LAUNCHERS) if name not in found]
    if missing:
        return fail(f"Hydra does not find {', '.join(missing)}", "sweeps and launch=... fail", REBUILD)
    return ok("the sweeper of this project, and launchers for processes (joblib) and Slurm (submitit)")
