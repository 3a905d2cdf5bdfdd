"""Read what a training needs in addition to PyTorch, in a child process, because each of it may fail to answer."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from ..settings import project
from .collect_torch import TERMS
from .readings import Steps

SPEED_BYTES = 8 * 2**20


def disk_steps(*folders: str) -> Steps:
    """For each folder, or the nearest existing one above it: free bytes, seconds to write and to read a small file."""
    for folder in folders:
        yield folder, partial(_disk, Path(folder))


def _disk(folder: Path) -> dict[str, Any]:
    folder = next(place for place in [folder, *folder.parents] if place.is_dir())
    free = shutil.disk_usage(folder).free
    content = os.urandom(SPEED_BYTES)  # random: no file system can compress it
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):  # otherwise the file would be read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        same = file.read() == content
        read = time.perf_counter()
    return {
        "folder": str(folder), "free": free, "device": folder.stat().st_dev,
        "write_s": written - started, "read_s": read - written, "same": same,
    }  # fmt: skip


def mlflow_steps() -> Steps:
    """The address of the store, then the state of its database or server."""
    yield "address", _mlflow_address
    uri = _mlflow_address()
    if uri and uri.startswith("sqlite:///"):
        yield "database", partial(_mlflow_database, Path(uri.removeprefix("sqlite:///")))
    elif uri:
        yield "server", partial(_mlflow_server, uri)


def _mlflow_address() -> str | None:
    from ..settings.config import compose

    uri: str | None = compose(project.current().script).tracking.mlflow_uri
    return uri


def _mlflow_database(file: Path) -> tuple[str, str, str]:
    """How it stands, the revision of its tables, and that of the installed MLflow; nothing is migrated."""
    import sqlite3
    from contextlib import closing

    from ..tracking.mlflow_client import quiet_mlflow

    if not file.exists():
        return "to be made" if os.access(file.absolute().parent, os.W_OK) else "sealed", "", ""
    quiet_mlflow()
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store/db_migrations"))
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=5)) as database:
        database.isolation_level = None
        found = [row[0] for row in database.execute("SELECT version_num FROM alembic_version")]
        database.execute("BEGIN IMMEDIATE")  # takes the lock that a write needs
        database.execute("CREATE TABLE doctor (x INTEGER)")
        database.execute("ROLLBACK")
    head, known = str(scripts.get_current_head()), {script.revision for script in scripts.walk_revisions()}
    state = "current" if found == [head] else "older" if set(found) <= known else "newer"
    return state, " ".join(found), head


def _mlflow_server(uri: str) -> dict[str, Any]:
    import urllib.request

    from ..tracking.mlflow_client import mlflow_client, trouble, without_password

    client = mlflow_client(uri)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "10"
    try:
        client.search_experiments(max_results=1)
    except Exception as error:
        return {"uri": without_password(uri), "trouble": trouble(uri, error)}
    import mlflow

    try:
        with urllib.request.urlopen(f"{without_password(uri).rstrip('/')}/version", timeout=10) as page:
            version = page.read(100).decode()
    except OSError:
        version = ""
    return {"uri": without_password(uri), "trouble": "", "server": version, "client": mlflow.__version__}


def dvc_remote(root: str) -> dict[str, Any]:
    """The default remote, read without a repository object: that needs Git, or a setting that says there is none."""
    from dvc.config import Config
    from dvc.fs import get_cloud_fs

    config = Config(str(Path(root) / ".dvc"))
    name = config["core"].get("remote")
    if not name:
        return {"name": None}
    url = str(config["remote"][name]["url"])
    if "CHANGE-ME" in url:  # the template's placeholder for what only the user knows
        return {"name": name, "url": url, "never_set": True}
    kind, settings, path = get_cloud_fs(config, name=name)
    try:
        exists = bool(kind(**settings).info(path))
    except FileNotFoundError as error:
        if isinstance(error.__cause__, OSError):  # http raises it also where no server answers
            raise error.__cause__ from None
        exists = False
    if kind.protocol == "local" and exists and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written")
    local = kind.protocol == "local"
    url = os.path.normpath(url) if local else url
    return {"name": name, "url": url, "never_set": False, "exists": exists, "local": local}


def hydra_plugins() -> list[str]:
    import warnings

    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher
    from hydra.plugins.sweeper import Sweeper

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Hydra only warns about a plugin that cannot be imported
        plugins = Plugins.instance()
        found = [*plugins.discover(Sweeper), *plugins.discover(Launcher)]
    return [f"{plugin.__module__}.{plugin.__qualname__}" for plugin in found]


def tensorflow_steps() -> Steps:
    """Build and GPUs, then a product on each device."""
    yield "build", _tensorflow_build
    import tensorflow as tf

    for device in ["CPU:0", *(f"GPU:{index}" for index in range(len(tf.config.list_physical_devices("GPU"))))]:
        yield device, partial(_tensorflow_product, device)


def _tensorflow_build() -> dict[str, Any]:
    import tensorflow as tf

    cuda, num_gpus = bool(tf.test.is_built_with_cuda()), len(tf.config.list_physical_devices("GPU"))
    return {"version": tf.__version__, "cuda": cuda, "num_gpus": num_gpus}


def _tensorflow_product(device: str) -> bool:
    import tensorflow as tf

    with tf.device(device):
        ones = tf.ones((TERMS, TERMS))
        return bool(tf.reduce_all(tf.matmul(ones, ones) == float(TERMS)))
