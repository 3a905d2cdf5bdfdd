"""Send to MLflow what it could not accept during the runs.

    python -m runengine sync                   # everything in runs/
    python -m runengine sync runs/digits/…     # this run, also if MLflow should have it already

What MLflow has is not sent again. Runs that are on are left out: they send by themselves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..runs.lock import owner
from ..runs.run import RUNS, Run
from ..settings.errors import UserError
from . import mlflow_client, mlflow_sync, payload


def sync(folders: Sequence[Path]) -> int:
    """Send these runs and sweeps, a sweep before its runs; returns how many could not be sent."""
    failed = 0
    for folder in sorted(folders, key=lambda folder: not payload.is_sweep(folder)):
        if owner(Run(folder)) is not None:
            print(f"{folder}: is on, sends by itself")
            continue
        uri = payload.read_record(folder).uri
        if uri is None:
            raise UserError(f"{folder} was trained with tracking=off. To record it: tracking=mlflow run_dir={folder}")
        try:
            mlflow_sync.send_all(folder, uri)
        except Exception as error:
            failed += 1
            print(f"error: {folder}: {mlflow_client.trouble(uri, error)}", file=sys.stderr)
            if mlflow_client.is_unreachable(error):  # the others would wait as long
                return failed
        else:
            print(f"{folder}: sent")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runengine sync", description="Send to MLflow what it has not got yet."
    )
    parser.add_argument("folders", nargs="*", type=Path, help="of runs or sweeps; without them all that need it")
    folders = parser.parse_args().folders
    for folder in folders:
        if not (folder / "starts.jsonl").is_file():
            raise UserError(f"{folder} is not the folder of a run or sweep. Look into {RUNS}/.")
    folders = folders or [mlflow_sync.unsent(file.parent).parent for file in RUNS.rglob(mlflow_sync.UNSENT)]
    if not folders:
        print("MLflow has everything")
    elif failed := sync(folders):
        sys.exit(f"error: {failed} of {len(folders)} could not be sent. Run make sync again later.")
