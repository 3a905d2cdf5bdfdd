"""The artifacts of a store that is on this machine: checkpoints are linked, not copied."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    from mlflow import MlflowClient

PART_OF_A_FILE = ".artifact.uploading."  # how MLflow calls it while it copies


def local_artifacts(client: MlflowClient, run_id: str) -> Path | None:
    """The folder of this run's artifacts, if it is on this machine."""
    artifacts = str(client.get_run(run_id).info.artifact_uri)
    return Path(url2pathname(urlsplit(artifacts).path)) if artifacts.startswith("file:") else None


def link(file: Path, target: Path) -> bool:
    """One more name for a file that is never changed but replaced; False where the file system has no links."""
    new = target.with_name(f"{PART_OF_A_FILE}{os.getpid()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, new)
        new.replace(target)
        new.unlink(missing_ok=True)  # it stays where both were the same file already
    except OSError:
        return False
    return True


def remove_parts(artifacts: Path) -> None:
    """What a process has left that was killed while it copied a file."""
    for part in artifacts.rglob(f"{PART_OF_A_FILE}*"):
        part.unlink(missing_ok=True)
