"""What a run was made with: code, packages, machine. Written at each start, so that a result can be traced."""

from __future__ import annotations

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

COPY_OF = Path(__file__).parents[1] / "copy_of.json"  # in the copy of the code that a Slurm job imports: its Git state

log = logging.getLogger(__name__)


def command() -> str:
    """This process's command, as it can be typed again."""
    main = sys.modules["__main__"].__spec__
    program = ["-m", main.name] if main else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])


def start_record() -> dict[str, Any]:
    """When, where and how this process was started."""
    return {
        "started_at": datetime.now().astimezone().isoformat(timespec="microseconds"),
        "command": command(),
        "host": platform.node(),
        "pid": os.getpid(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        **git_state(),
    }


def git_state() -> dict[str, Any]:
    """Commit of this project and whether files differ from it; empty where the project is in no repository."""
    if COPY_OF.is_file():
        state: dict[str, Any] = json.loads(COPY_OF.read_text(encoding="utf-8"))
        return state
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # a repository around the project is not its own
        return {"git_commit": _git("rev-parse", "HEAD").strip(), "git_dirty": bool(_git("status", "--short"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def write(folder: Path) -> None:
    """`environment.json` and, where files differ from the commit, `uncommitted.diff`."""
    file = folder / "environment.json"
    now = environment()
    if file.is_file():
        _warn_of_changes(json.loads(file.read_text(encoding="utf-8")), now)
    file.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    write_diff(folder)


def write_diff(folder: Path) -> None:
    """`uncommitted.diff`, where files differ from the commit."""
    if not git_state().get("git_dirty"):
        return
    copied = COPY_OF.with_name("uncommitted.diff")
    text = copied.read_text(encoding="utf-8") if copied.is_file() else _git("diff", "HEAD")
    (folder / "uncommitted.diff").write_text(text, encoding="utf-8")


def copy_code(folder: Path) -> None:
    """The package as it is now, with the Git state it is in: what is edited later is not what a waiting job runs."""
    source = Path(__file__).parents[1]
    for package in (str(__package__), "hydra_plugins"):
        shutil.copytree(source / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    write_diff(folder)
    (folder / COPY_OF.name).write_text(json.dumps(git_state()) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Python, packages, system and GPUs; torch must be imported already to be asked for them."""
    gpus, driver = [], None
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        driver = _driver()
    packages = {package.metadata["Name"]: package.version for package in distributions()}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "driver": driver,
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def _warn_of_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = before.get("packages", {}), now["packages"]
    changed = [f"{name} {old[name]} -> {new.get(name)}" for name in old if old[name] != new.get(name)]
    if before.get("python") != now["python"]:
        changed.insert(0, f"Python {before.get('python')} -> {now['python']}")
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        log.warning("this run was started with other versions: %s%s", ", ".join(changed[:5]), more)


def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    return subprocess.run(
        ["git", *arguments], cwd=here, capture_output=True, text=True, errors="replace", check=True
    ).stdout
