"""Train a recorded run again from its commit, its data and its package versions, and compare the results.

    python -m runengine rerun runs/digits/…     # or the id of its MLflow run

    .rerun/<name of the run>/
        code/        the commit, in a Git worktree, with what was not committed then
        packages/    those that had another version; they are imported before the installed ones
        run/         what was trained

Exit status: 0 equal, 1 not equal.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from .runs import provenance
from .runs.find import find
from .runs.run import Run, read_numbers
from .settings import project
from .settings.errors import UserError
from .settings.files import read_json
from .sweeps.results import print_table

PLACE = Path(".rerun")
NOT_COMPARED = {"pip", "setuptools", "wheel"}  # they install, they do not compute


def rerun(run: Run) -> Run:
    """Train it again; returns the new run.

    Raises:
        UserError: it cannot be repeated; the message says what is missing.
    """
    place = (PLACE / run.folder.name).absolute()
    code = _check_out(run, {start.get("git_commit") for start in run.read_starts()}, place)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place / "packages"), str(code / "src")])}
    _bring_packages(run, place, code)
    _bring_data(run, code, environment)
    if Path("runs").is_dir():  # init_from may name a run
        (code / "runs").symlink_to(Path("runs").absolute(), target_is_directory=True)
    new = Run(place / "run")
    new.folder.mkdir()
    shutil.copy(run.config, new.config)  # a run folder that has settings is trained with them
    command = [sys.executable, "-m", run.module(), f"run_dir={new.folder}", "tracking=off"]
    if subprocess.call(command, cwd=code, env=environment) != 0:
        raise UserError(f"{run.folder} could not be trained again; the error is above and in {new.log}.")
    return new


def compare(recorded: Run, new: Run, tolerance: float) -> bool:
    """Print both results; true if none differs by more than `tolerance`, relative to the recorded one."""
    before, after = (read_numbers(run.metrics) for run in (recorded, new))
    rows = [{"metric": name, "recorded": repr(value), "again": repr(after.get(name))} for name, value in before.items()]
    print_table(["metric", "recorded", "again"], rows)
    if recorded.history.read_bytes() == new.history.read_bytes():
        print("equal to the last digit, in every epoch")
        return True
    worst = max(_difference(before[name], after.get(name)) for name in before)
    print(f"not equal: the largest relative difference is {worst:.2g}, {tolerance:g} is allowed (--tolerance)")
    return worst <= tolerance


def _difference(before: float, after: float | None) -> float:
    return float("inf") if after is None else abs(after - before) / max(abs(before), 1e-12)


def _check_out(run: Run, commits: set[str | None], place: Path) -> Path:
    """The project's folder in a new worktree."""
    if None in commits:
        raise UserError(f"{run.folder} was trained outside of a Git repository: its code is not known.")
    if len(commits) > 1:
        named = ", ".join(sorted(str(commit)[:10] for commit in commits))
        raise UserError(f"{run.folder} was trained by several commits ({named}): none of them repeats it alone.")
    if run.pruned.exists():
        raise UserError(f"{run.folder} was ended early by a search that compared trials: alone it cannot be repeated.")
    (commit,) = commits
    worktree = place / "code"
    _git("worktree", "remove", "--force", str(worktree), check=False)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if _git("worktree", "add", "--quiet", "--detach", str(worktree), str(commit), check=False).returncode != 0:
        raise UserError(
            f"this repository has no commit {commit}, by which {run.folder} was trained. Try: git fetch --all"
        )
    code = worktree / _git("rev-parse", "--show-prefix").stdout.strip()
    diff = run.diff
    if diff.exists() and diff.stat().st_size:
        _git("apply", "--whitespace=nowarn", str(diff.absolute()), cwd=worktree)
    print(f"code      commit {str(commit)[:10]}{' and what was not committed' if diff.exists() else ''}", flush=True)
    return code


def _bring_packages(run: Run, place: Path, code: Path) -> None:
    """Install, into a folder of their own, the packages that had another version."""
    then = read_json(run.environment)
    if "python" not in then or "packages" not in then:
        raise UserError(
            f"{run.environment} is missing or damaged: with which packages {run.folder} was trained is not known. "
            "Copy it from the run's artifacts in MLflow."
        )
    if then["python"].rpartition(".")[0] != platform.python_version().rpartition(".")[0]:
        raise UserError(f"{run.folder} was trained with Python {then['python']}, this is {platform.python_version()}.")
    missing = other_versions(then["packages"], provenance.environment()["packages"], code / "pyproject.toml")
    if not missing:
        print(f"packages  the {len(then['packages'])} that were recorded")
        return
    print(f"packages  {', '.join(missing)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", place / "pip"], check=True)
    python = place / "pip" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--target", str(place / "packages")]
    if any(name.startswith("torch==") for name in missing):
        index = tomllib.loads((code / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ml-template"]
        options += ["--extra-index-url", index["torch_index"]]
    if subprocess.call([*pip, *options, *missing]) != 0:
        raise UserError(f"pip cannot install what {run.folder} was trained with; its message is above.")


def other_versions(then: Mapping[str, str], now: Mapping[str, str], pyproject: Path) -> list[str]:
    """What was installed then and now is missing or has another version, as `name==version`."""
    itself = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["name"]
    plain = {_plain(name): version for name, version in now.items()}
    left_out = NOT_COMPARED | {_plain(itself)}
    return [
        f"{name}=={version}"
        for name, version in then.items()
        if _plain(name) not in left_out and plain.get(_plain(name)) != version
    ]


def _bring_data(run: Run, code: Path, environment: Mapping[str, str]) -> None:
    """Into the worktree: the data of this folder, if unchanged; else from DVC's cache or remote, or prepared again."""
    record = provenance.read_data(run)
    if not record:
        raise UserError(f"{run.folder} has no data.json: which data it was trained on is not known.")
    here, there = Path(record["folder"]), code / record["folder"]
    if provenance.same_data(here, record):
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(here.absolute(), target_is_directory=True)
        print(f"data      {here}, unchanged", flush=True)
        return
    own = Path(".dvc/config.local")
    if own.exists():
        shutil.copy(own, code / own)
    dvc = [sys.executable, "-m", "dvc"]
    cache = ["cache", "dir", "--local", str(Path(".dvc/cache").absolute())]
    subprocess.run([*dvc, *cache], cwd=code, capture_output=True, check=False)
    ways: dict[str, list[str]] = {
        "DVC's cache": [*dvc, "checkout", "--force", record["folder"]],
        "DVC's remote": [*dvc, "pull", "--force", record["folder"]],
        "prepare": [sys.executable, "-m", f"{project.current().package}.prepare"],
    }
    for name, command in ways.items():
        subprocess.run(command, cwd=code, env=environment, capture_output=True, check=False)
        if provenance.same_data(there, record):
            print(f"data      {record['folder']}, from {name}", flush=True)
            return
    raise UserError(
        f"the data of {run.folder} are not those in {here}. DVC's cache and remote do not have them, and prepare makes "
        "others. Restore them, for example with: make pull"
    )


def _plain(name: str) -> str:
    """A package's name in the form in which names are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _git(*arguments: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=check)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runengine rerun", description="Train a recorded run again, and compare the results."
    )
    parser.add_argument("run", nargs="?", help="a run's folder, or the id of its MLflow run; without it the newest")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative; GPUs seldom give the same bits twice")
    arguments = parser.parse_args()
    run = find(arguments.run)
    if not run.finished():
        raise UserError(f"{run.folder} is not finished. Run: {run.resume_command()}")
    new = rerun(run)
    equal = compare(run, new, arguments.tolerance)
    print(f"the new run is in {os.path.relpath(new.folder)}")
    sys.exit(0 if equal else 1)
