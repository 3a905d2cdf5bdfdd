"""The jobs of this project that were started somewhere else, one line each, whatever engine has them.

python -m runengine jobs                             # make jobs
python -m runengine jobs --cancel runs/.../sweep-…   # make jobs ARGS="--cancel runs/.../sweep-…"
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .launch import slurm
from .launch.elsewhere import ACTIVE, launched
from .runs.find import having
from .runs.run import Run
from .settings import project
from .settings.errors import UserError
from .sweeps.results import print_table


def show() -> int:
    """Print them; returns how many engines did not answer."""
    rows: list[dict[str, Any]] = slurm.list_jobs()
    silent = 0
    for sweep in having(Run.sweep):
        if not (found := launched(sweep)):
            continue
        engine, names = found
        try:
            seen = engine.look(names)
        except UserError as error:
            print(f"warning: {sweep.folder}: {error}")
            silent += 1
            continue
        rows += [
            {"job": name, "engine": engine.name, "state": each.state, "sweep": sweep.folder.as_posix(), "": each.why}
            for name, each in seen.items()
            if each.state != "gone"
        ]
    if rows:
        print_table(["job", "engine", "state", "sweep", ""], rows)
    elif not silent:
        print("no jobs")
    return silent


def cancel(sweep: Run) -> None:
    """End the jobs of a sweep; each saves its run first."""
    found = launched(sweep)
    if found is None:
        raise UserError(f"{sweep.folder} has no jobs that were started somewhere else. To see all: make jobs")
    engine, names = found
    active = [name for name, seen in engine.look(names).items() if seen.state in ACTIVE]
    engine.cancel(active)
    module = f"{project.current().package}.{OmegaConf.load(sweep.sweep).script}"
    print(f"cancelled {len(active)} of {len(names)} jobs. To resume: python -m {module} sweep_dir={sweep.folder}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runengine jobs", description="Jobs that were started elsewhere.")
    parser.add_argument("--cancel", metavar="SWEEP", type=Path, help="end the jobs of the sweep in this folder")
    arguments = parser.parse_args()
    if arguments.cancel:
        cancel(Run(arguments.cancel))
    elif show():
        raise SystemExit(1)
