"""The store of MLflow, a database or a server: how it is reached, and what its failures are called.

    python -m runengine store sqlite:///mlflow.db    # makes the tables, if they are not there; `make setup` does it

Other programs open it by `mlflow_client`.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..compat import importing
from ..settings.console import first_line
from ..settings.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# where MLflow's tables hold paths of artifacts
PATHS = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
)  # fmt: skip
TROUBLES = {
    "onnection refused": "nobody answers there",
    "Failed to resolve": "its name is not known",
    "timed out": "no answer in time",
    "onnection aborted": "it broke the connection off",
    "onnection reset": "it broke the connection off",
    "disk is full": "its disk is full",
}


def quiet_mlflow() -> None:
    """To be called before its import: it says little, gives up early, and sends nothing to its makers."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what it raises is shown as a sentence
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # who calls it tries again, and can be stopped meanwhile
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)


def is_new(uri: str) -> bool:
    """A database in a file that is not there yet."""
    file = _database(uri)
    return file is not None and not file.exists()


def mlflow_client(uri: str) -> MlflowClient:
    """A client of this store."""
    quiet_mlflow()
    with importing("mlflow"):
        import mlflow

    file = _database(uri)
    with _one_at_a_time(file):
        if file and not file.exists():
            # a process killed while MLflow makes its tables would leave a file that MLflow never opens again
            new = file.with_name(f"{file.name}.new")
            new.unlink(missing_ok=True)
            mlflow.MlflowClient(tracking_uri=f"sqlite:///{new}").search_experiments(max_results=1)
            new.replace(file)
        take_artifacts_along(uri)
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def refusal(uri: str, error: Exception) -> str | None:
    """The sentence for a server that will not take more however often it is asked; None for one that may."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException) or "://" not in uri:
        return None
    status = status_of(error)
    if status in (401, 403):
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        as_whom = f"the user {user}" if user else "a user without name"
        return (
            f"MLflow at {without_password(uri)} refuses {as_whom} (status {status}). Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or train with tracking=off."
        )
    if status == 404 or "not in a valid JSON format" in str(error):
        return (
            f"at {without_password(uri)} something answers, but no MLflow server. Look at MLFLOW_TRACKING_URI, or "
            "train with tracking=off."
        )
    return None


def without_password(uri: str) -> str:
    """`https://user:<password>@host/path?token=...` -> `https://host/path`."""
    scheme, separator, rest = uri.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def trouble(uri: str, error: Exception) -> str:
    """The sentence for what MLflow has raised."""
    if isinstance(error, UserError):
        return str(error)
    return refusal(uri, error) or (
        f"MLflow at {without_password(uri)} did not take it: {why(error)}. Try again when it is there."
    )


def why(error: BaseException) -> str:
    """What is wrong with a store, in a few words."""
    return next((words for sign, words in TROUBLES.items() if sign in str(error)), first_line(error)[:200])


def is_absent(error: Exception) -> bool:
    """MLflow answers that it has no such thing."""
    return status_of(error) == 404


def is_unreachable(error: Exception) -> bool:
    return why(error) in TROUBLES.values()


def status_of(error: Exception) -> int:
    """Of the HTTP answer that MLflow gives for this error, or has given."""
    status: int = error.get_http_status_code() if hasattr(error, "get_http_status_code") else 0
    return status


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Of the experiment with this name, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    file = _database(uri)
    # next to a database in a file, not where the first run happened to be started; a server knows its own place
    artifacts = (file.absolute().parent / "mlruns" / name).as_uri() if file else None
    with _one_at_a_time(file):
        if experiment := client.get_experiment_by_name(name):
            return str(experiment.experiment_id)
        try:
            return client.create_experiment(name, artifacts)
        except MlflowException:  # two runs that start together
            if experiment := client.get_experiment_by_name(name):
                return str(experiment.experiment_id)
            raise


def run_python(*arguments: str, **environment: str) -> int:
    """A program of this Python's, until it is stopped; returns its exit status."""
    # MLflow looks for its web server on the PATH, where it is not if Python was called by its full name
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        return subprocess.call([sys.executable, *arguments], env={**os.environ, "PATH": path, **environment})
    except KeyboardInterrupt:
        return 0


def refuse_taken_port(host: str, port: int) -> None:
    """Before anything is loaded.

    Raises:
        UserError: another program listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error).rstrip(".")
            other = port + 1 if 1024 <= port < 65535 else 5005
            raise UserError(f"port {port} of {host} cannot be taken: {why}. Take another: PORT={other}") from None


def _one_at_a_time(database: Path | None) -> AbstractContextManager[Any]:
    """A lock next to a database in a file: of many runs that start together, one makes it."""
    from filelock import FileLock

    return FileLock(f"{database}.lock") if database else nullcontext()


def take_artifacts_along(uri: str) -> None:
    """MLflow notes absolute paths: those of a project that was moved or copied become those of this one.

    Else a copy would write into the folder of the original, and what was moved would not be found. Of a store that is
    no database in a file, nothing is changed.
    """
    database = _database(uri)
    if not database or not database.is_file():
        return
    root = database.absolute().parent
    with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(database, timeout=60)) as store, store:
        locations = [str(location) for (location,) in store.execute("select artifact_location from experiments")]
        for location in locations:
            before, found, name = location.rpartition("/mlruns/")
            here = root.as_uri() if before.startswith("file:") else root.as_posix()
            if not found or before == here or not (root / "mlruns" / unquote(name)).is_dir():
                continue  # they are kept elsewhere, or have not come along
            old = f"{before}/mlruns/{name}"
            for table, column in PATHS:
                store.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "  # noqa: S608
                    f"where substr({column}, 1, ?) = ? and substr({column}, ?, 1) in ('', '/')",
                    (here, len(before) + 1, len(old), old, len(old) + 1),
                )


def _database(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def main() -> None:
    mlflow_client(*sys.argv[1:])
