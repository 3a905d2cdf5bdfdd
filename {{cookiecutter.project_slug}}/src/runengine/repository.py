"""The project in Git: its first commit, the checks before each commit, and what DVC has to know of it.

    python -m runengine first-commit                # make first-commit
    python -m runengine hooks                       # make hooks
    python -m runengine dvc-ready                   # before each use of DVC
    python -m runengine offer .venv/.ready-asked    # the end of make setup: asks whether to make that commit

The Makefile types these.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .settings import project
from .settings.errors import UserError

QUESTION = "Put this project into Git now, with a first commit and checks before each commit? [y/N] "
SETTING = "core.no_scm"


def dvc_ready(folder: Path) -> None:
    """DVC fails outside Git unless this is set, and refuses experiments in Git if it is."""
    file = folder / ".dvc/config.local"
    is_set = file.is_file() and SETTING.rpartition(".")[2] in file.read_text(encoding="utf-8")
    in_git = (folder / ".git").exists()
    if is_set == in_git:
        change = ["--unset", SETTING] if in_git else [SETTING, "true"]
        _run(folder, sys.executable, "-m", "dvc", "config", "--local", "--quiet", *change)


def hooks(folder: Path) -> None:
    """Before each commit: the checks of .pre-commit-config.yaml.

    Raises:
        UserError: the folder is in no repository.
    """
    if not _git(folder, "rev-parse", "--git-dir"):
        raise UserError("this folder is not in Git yet. Run: make first-commit")
    _run(folder, sys.executable, "-m", "pre_commit", "install")


def first_commit(folder: Path) -> None:
    """A new repository with everything that `.gitignore` does not leave out, and the checks before each commit.

    Raises:
        UserError: Git is not installed or does not know its user, or the folder has commits.
    """
    if not shutil.which("git"):
        raise UserError("git is not here. Install it (https://git-scm.com), then run: make first-commit")
    if not (_git(folder, "config", "user.name") and _git(folder, "config", "user.email")):
        raise UserError(
            'Git does not know you yet. Run: git config --global user.name "Your Name" && '
            "git config --global user.email you@example.com"
        )
    if _git(folder, "rev-parse", "--verify", "HEAD"):
        raise UserError("this folder is in Git and has commits. Run: make hooks")
    _run(folder, "git", "init", "--quiet", "--initial-branch=main")
    hooks(folder)
    dvc_ready(folder)
    _run(folder, "git", "add", "--all")
    _run(folder, "git", "commit", "--quiet", "--message", "Start from the template")


def offer(folder: Path, asked: Path) -> None:
    """Ask whether to make the first commit: at a terminal only, once for each environment.

    Args:
        folder: of the project.
        asked: the file that says that it was asked.
    """
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not os.environ.get("CI")
    if not at_terminal or asked.exists() or not shutil.which("git") or _git(folder, "rev-parse", "--git-dir"):
        return
    try:
        answer = input(QUESTION)
    except EOFError:
        answer = ""
        print()
    asked.touch()
    if answer.lower().startswith("y"):
        first_commit(folder)
    else:
        print("Not now. Later: make first-commit")


def _git(folder: Path, *arguments: str) -> bool:
    """Does this command of Git succeed? It prints nothing."""
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True).returncode == 0


def _run(folder: Path, *command: str) -> None:
    """Ends with the command's exit status where it fails: it has said why."""
    sys.stdout.flush()
    if status := subprocess.run(command, cwd=folder).returncode:
        sys.exit(status)


def main() -> None:
    command, folder = sys.argv[1], project.root()
    if command == "offer":
        offer(folder, Path(sys.argv[2]))
    else:
        {"dvc-ready": dvc_ready, "hooks": hooks, "first-commit": first_commit}[command](folder)
