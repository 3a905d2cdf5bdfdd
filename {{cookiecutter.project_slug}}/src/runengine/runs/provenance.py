"""What a run was made with: code, packages, machine. Written at each start, so that a result can be traced."""

from __future__ import annotations

import functools
import getpass
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .. import manifest
from ..settings import code, project
from ..settings.console import listed
from ..settings.files import atomic_write, drop_half_a_line, read_json, sha256
from .run import Run
from .uncommitted import write_without_secrets

COPY_OF = project.COPY_OF

log = logging.getLogger(__name__)


def command() -> str:
    """This process's command, as it can be typed again."""
    main = sys.modules["__main__"].__spec__
    if main is None and Path(sys.argv[0]).stem == project.current().module.replace(".", "-"):
        return shlex.join(["python", "-m", project.current().module, *sys.argv[1:]])
    program = ["-m", main.name] if main else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])


def record_start(run: Run) -> None:
    """When, where and how this process was started, into the folder of a run or a sweep."""
    record = {
        "started_at": datetime.now().astimezone().isoformat(timespec="microseconds"),
        "command": command(),
        "host": platform.node(),
        "pid": os.getpid(),
        "user": _user(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME"),
        "engine": manifest.state(),
        **git_state(),
    }
    drop_half_a_line(run.starts)
    with run.starts.open("a", encoding="utf-8") as starts:
        starts.write(json.dumps(record) + "\n")


def git_state() -> dict[str, Any]:
    """Commit of this project and whether files differ from it; empty where the project is in no repository."""
    if COPY_OF.is_file():
        return read_json(COPY_OF)
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")  # a repository around the project is not its own
        return {"git_commit": _git("rev-parse", "HEAD").strip(), "git_dirty": bool(_git("status", "--short"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def data_folder(cfg: DictConfig) -> Path | None:
    """Where the prepared data are, if the settings say so: `data.folder`."""
    folder = OmegaConf.select(cfg, "data.folder")
    return None if folder is None else Path(folder)


def write(run: Run, data: Path | None, *, diff: bool) -> None:
    """`environment.json`, `data.json` and, where files differ from the commit, `uncommitted.diff`.

    Args:
        run: its folder has been made.
        data: the folder of the prepared data, if there is one.
        diff: whether what is not committed is recorded.
    """
    if data is not None:
        _write_data(run.data, data)
    now = environment()
    if before := read_json(run.environment):
        _warn_of_changes(before, now)
    atomic_write(run.environment, json.dumps(now, indent=2) + "\n")
    if diff:
        write_diff(run.folder)


def write_diff(folder: Path) -> None:
    """`uncommitted.diff`, where files differ from the commit."""
    if not git_state().get("git_dirty"):
        return
    copied = COPY_OF.with_name(Run.diff.name)
    text = copied.read_text(encoding="utf-8") if copied.is_file() else _git("diff", "HEAD")
    write_without_secrets(folder / Run.diff.name, text)


def copy_code(folder: Path, *, diff: bool) -> None:
    """The package as it is now, with the Git state it is in: what is edited later is not what a waiting job runs."""
    owner = project.current()
    plugins = project.ENGINE_FOLDER.parent / "hydra_plugins"
    for package, source in (
        (owner.package, owner.folder), (project.ENGINE, project.ENGINE_FOLDER), ("hydra_plugins", plugins)
    ):  # fmt: skip
        shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    if diff:
        write_diff(folder)
    (folder / COPY_OF.name).write_text(json.dumps(git_state()) + "\n", encoding="utf-8")


def data_version(folder: Path) -> dict[str, str]:
    """The SHA-256 of `split.json`, and DVC's hash of the prepared data if `dvc.lock` describes them as they are.

    Reads the data once, about as long as the check of their SHA-256 takes; DVC itself would have to be imported.
    """
    if not (folder / "split.json").is_file():
        return {}
    version = {"data_split_sha256": sha256(folder / "split.json")}
    if (known := _locked_data(folder)) and known == _dvc_hash(folder):
        version["data_dvc_md5"] = known
    return version


def split_changed(run: Run, folder: Path | None) -> bool:
    """Was the run trained on another split, or on other files, than `split.json` of this folder describes?"""
    before = read_data(run).get("data_split_sha256")
    split = folder / "split.json" if folder else None
    return bool(before and split and split.is_file() and sha256(split) != before)


def fingerprint(settings: dict[str, Any], data: Path | None) -> dict[str, Any]:
    """What decides a run's result: its settings, the owner's code, the engine's version, the prepared data."""
    owner, script = code.hashes(), project.current().script
    programs = {f"{script}.py": owner["programs"][script]} if script in owner["programs"] else {}
    files = {"the engine": project.ENGINE_FOLDER / "VERSION"}
    if data is not None:
        files["the data"] = data / "split.json"  # it holds the SHA-256 of the other files
    hashes = {name: sha256(file) for name, file in files.items() if file.is_file()}
    return {**settings, **owner["modules"], **programs, **hashes}


def environment() -> dict[str, Any]:
    """Python, packages, system and GPUs; torch must be imported already to be asked for them."""
    gpus, driver = [], None
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        driver = _driver()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "driver": driver,
        "packages": dict(_packages()),
    }


@functools.cache  # to read them takes 0.2 s, and the runs of a sweep have the same
def _packages() -> list[tuple[str, str]]:
    found = {package.metadata["Name"]: package.version for package in distributions()}
    return sorted(found.items(), key=lambda item: item[0].lower())


def _write_data(file: Path, data: Path) -> None:
    version = data_version(data)
    if not version:
        return
    known = {key: value for key, value in read_json(data / "split.json").items() if key != "sha256"}
    record = {"folder": data.as_posix(), **version, **known}
    before = read_json(file)
    if before and before != record:
        log.warning("this run was started with other data: %s has changed since", data)
    atomic_write(file, json.dumps(record, indent=2) + "\n")


def _warn_of_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = before.get("packages", {}), now["packages"]
    changed = [f"{name} {old[name]} -> {new.get(name)}" for name in old if old[name] != new.get(name)]
    if before.get("python") != now["python"]:
        changed.insert(0, f"Python {before.get('python')} -> {now['python']}")
    if changed:
        log.warning("this run was started with other versions: %s", listed(changed))


def read_data(run: Run) -> dict[str, Any]:
    """What the run's `data.json` says; empty where there is none."""
    return read_json(run.data)


def same_data(folder: Path, record: dict[str, Any]) -> bool:
    """Is this the data that `data.json` of a run describes?"""
    split = folder / "split.json"
    if not split.is_file():
        return False
    if md5 := record.get("data_dvc_md5"):
        return bool(_dvc_hash(folder) == md5)
    return bool(sha256(split) == record["data_split_sha256"])


def _locked_data(folder: Path) -> str | None:
    """What `dvc.lock` says of this folder, which a stage has written."""
    try:
        lock: Any = OmegaConf.to_container(OmegaConf.load("dvc.lock"))
        outs = {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage.get("outs", [])}
    except Exception:  # no file, a conflict of Git in it, ...: what is raised depends on where it is damaged
        return None
    return outs.get(folder.as_posix())


def _dvc_hash(folder: Path) -> str:
    """As DVC 3 hashes a folder: the MD5 of the list of its files with theirs."""
    files = []
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as content:
                md5 = hashlib.file_digest(content, "md5").hexdigest()
            files.append({"md5": md5, "relpath": file.relative_to(folder).as_posix()})
    files.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(files).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _user() -> str | None:
    """The name of who started it; a container may have none for its user's number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _driver() -> str | None:
    """Of NVIDIA's GPUs. CUDA is in use in this process already, so the driver answers."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _git(*arguments: str) -> str:
    here = project.current().folder
    return subprocess.run(
        ["git", *arguments], cwd=here, capture_output=True, text=True, errors="replace", check=True
    ).stdout
