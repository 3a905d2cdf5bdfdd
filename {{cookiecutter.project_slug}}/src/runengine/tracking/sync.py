"""Send to MLflow what it could not accept during the runs.

    python -m runengine sync                   # everything in runs/
    python -m runengine sync runs/digits/…     # this run, also if MLflow should have it already

What MLflow has is not sent again. Runs that are on are left out: they send by themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..runs.find import having, named
from ..runs.lock import owner
from ..runs.run import RUNS, Run
from ..settings.errors import UserError
from ..settings.files import atomic_write, read_json
from . import mlflow_client, payload
from .mlflow_sync import MlflowSync


def note(run: Run, status: str, why: str = "") -> None:
    """Something of this run, or sweep, is still to be sent."""
    atomic_write(run.unsent, json.dumps({"status": status, "why": why}) + "\n")


def send_all(run: Run, uri: str) -> None:
    """Send what MLflow lacks of this run, or sweep, and wait for it.

    Raises:
        Exception: whatever MLflow raises; the folder still says that something is to be sent.
    """
    MlflowSync(run, uri).finish(_status(run))


def _status(run: Run) -> str:
    """How it has ended: as it has noted itself, or by what it has left."""
    if run.unsent.exists():
        noted: str = read_json(run.unsent).get("status", "RUNNING")
        if noted != "RUNNING":
            return noted
        return "FINISHED" if run.finished() else "KILLED"  # killed after the last thing it wrote
    if run.error.exists():
        return "FAILED"
    return "FINISHED" if run.is_sweep() or run.finished() else "KILLED"


def sync(runs: Sequence[Run]) -> int:
    """Send these runs and sweeps, a sweep before its runs; returns how many could not be sent."""
    failed = 0
    for run in sorted(runs, key=lambda run: not run.is_sweep()):
        if owner(run) is not None:
            print(f"{run.folder}: is on, sends by itself")
            continue
        uri = payload.read_record(run).uri
        if uri is None:
            raise UserError(
                f"{run.folder} was trained with tracking=off. To record it: tracking=mlflow run_dir={run.folder}"
            )
        try:
            send_all(run, uri)
        except Exception as error:
            failed += 1
            print(f"error: {run.folder}: {mlflow_client.trouble(uri, error)}", file=sys.stderr)
            if mlflow_client.is_unreachable(error):  # the others would wait as long
                return failed
        else:
            print(f"{run.folder}: sent")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runengine sync", description="Send to MLflow what it has not got yet."
    )
    parser.add_argument("folders", nargs="*", help="of runs or sweeps; without them all that need it")
    typed = parser.parse_args().folders
    runs = [named(each, having(Run.starts)) if each.startswith("@") else Run(Path(each)) for each in typed]
    for run in runs:
        if not run.starts.is_file():
            raise UserError(f"{run.folder} is not the folder of a run or sweep. Look into {RUNS}/.")
    runs = runs or having(Run.unsent)
    if not runs:
        print("MLflow has everything")
    elif failed := sync(runs):
        sys.exit(f"error: {failed} of {len(runs)} could not be sent. Run make sync again later.")
