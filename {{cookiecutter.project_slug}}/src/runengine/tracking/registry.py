"""The versions of trained models in MLflow, and the one that is served: the champion of its experiment.

python -m runengine promote runs/digits/…    # or the id of its MLflow run; without, the newest run
python -m runengine serve                    # the promoted one, on this machine only
python -m runengine serve runs/digits/…      # that run's, without asking MLflow
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

from ..runs.find import find
from ..runs.run import Run, load_config
from ..settings import project
from ..settings.config import compose
from ..settings.errors import UserError
from . import mlflow_client
from .export import have_model
from .mlflow_sync import register
from .payload import registered_name
from .sync import send_all

ALIAS = "champion"
PORT = 5001
MAX_MB = 64  # of a request: some twenty pictures of 224 x 224 x 3, written as JSON


def champion(experiment: str) -> str:
    """The address of the promoted model."""
    return f"models:/{registered_name(experiment)}@{ALIAS}"


def promote(run: Run) -> int:
    """Make the run's model a version in the registry, and that one the champion; returns the version.

    Raises:
        UserError: the run is not finished or not tracked, its model cannot be exported, or MLflow does not take it.
    """
    if not run.finished():
        raise UserError(f"{run.folder} is not finished. Run: {run.resume_command()}")
    cfg = load_config(run)
    uri = cfg.tracking.mlflow_uri
    if uri is None:
        raise UserError(
            f"{run.folder} was trained with tracking=off: MLflow does not know it. Train with tracking=mlflow."
        )
    have_model(run)
    name = registered_name(cfg.experiment_name)
    try:
        send_all(run, uri)
        client = mlflow_client.mlflow_client(uri)
        version = register(client, str(run.mlflow_id()), name)
        client.set_registered_model_alias(name, ALIAS, str(version))
    except Exception as error:
        raise UserError(mlflow_client.trouble(uri, error)) from error
    return version


def serve(port: int, host: str, experiment: str, run: Run | None = None, max_mb: int = MAX_MB) -> int:
    """Serve the champion of the experiment, or the model of this run, until it is stopped; returns the exit status.

    Raises:
        UserError: there is no champion, the run's model cannot be exported, or the port is taken.
    """
    mlflow_client.refuse_taken_port(host, port)
    env = {}
    if run is None:
        env["MLFLOW_TRACKING_URI"] = uri = address_of_store()
        model = champion(experiment)
        served = f"{model}, {_promoted(uri, registered_name(experiment))}"
    else:
        have_model(run)
        model = served = str(run.model)
    address = f"http://{host}:{port}"
    print(f"{served}: {address}   (Ctrl-C ends it)")
    example = "-H 'Content-Type: application/json' -d @runs/.../model/serving_input_example.json"
    print(f"ask it:  curl {address}/invocations {example}")
    sys.stdout.flush()
    server = Path(__file__).with_name("model_server.py")
    return mlflow_client.run_python("-P", str(server), model, host, str(port), str(max_mb), **env)


def load_model(name: str) -> Any:
    """A model of MLflow's, by its address `models:/...` or `runs:/...`: has `predict`, `metadata.metadata`.

    Raises:
        UserError: there is none, or the store does not answer.
    """
    uri = address_of_store()
    mlflow_client.quiet_mlflow()
    mlflow_client.take_artifacts_along(uri)
    import mlflow

    mlflow.set_tracking_uri(uri)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MLflow about itself
            return mlflow.pyfunc.load_model(name)
    except Exception as error:
        if mlflow_client.is_absent(error):
            where = mlflow_client.without_password(uri)
            raise UserError(f"MLflow at {where} has no {name}. Run: make promote") from None
        raise UserError(mlflow_client.trouble(uri, error)) from error


def address_of_store() -> str:
    """Where this project's runs and models are recorded.

    Raises:
        UserError: nowhere.
    """
    uri: str | None = compose(project.current().script).tracking.mlflow_uri
    if uri is None:
        raise UserError("conf/train.yaml says tracking: off, so there is no registry of models. Say tracking: mlflow.")
    return uri


def _promoted(uri: str, name: str) -> str:
    try:
        version = mlflow_client.mlflow_client(uri).get_model_version_by_alias(name, ALIAS)
    except Exception as error:
        if mlflow_client.is_absent(error):
            raise UserError(f"no model of {name} has been promoted yet. Run: make promote{_others(uri)}") from None
        raise UserError(mlflow_client.trouble(uri, error)) from error
    return f"version {version.version} of run {version.run_id}"


def _others(uri: str) -> str:
    """How to serve those of this project that have been promoted."""
    own = registered_name("")
    try:
        known = mlflow_client.mlflow_client(uri).search_registered_models(f"name LIKE '{own}%'")
    except Exception:  # a server that lists nothing: the sentence without it is true as well
        return ""
    found = sorted(each.name.removeprefix(own) for each in known if ALIAS in each.aliases and each.name.startswith(own))
    return "".join(f', or: make serve ARGS="--experiment {experiment}"' for experiment in found)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runengine", description="Choose the model that is served, and serve it."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    chosen = commands.add_parser("promote", help="make this run's model the champion of its experiment")
    chosen.add_argument("run", nargs="?", help="a run's folder, or the id of its MLflow run; without it the newest")
    served = commands.add_parser("serve", help="serve the champion on this machine")
    served.add_argument("run", nargs="?", help="a run's folder, or the id of its MLflow run, in place of the champion")
    served.add_argument("--experiment", help="whose champion; without it the one of conf/train.yaml")
    served.add_argument("--port", type=int, default=PORT)
    served.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container: whoever reaches it may ask")
    served.add_argument("--max-mb", type=int, default=MAX_MB, help=f"how large a request may be; without it {MAX_MB}")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        experiment = arguments.experiment or compose(project.current().script).experiment_name
        chosen_run = find(arguments.run) if arguments.run else None
        sys.exit(serve(arguments.port, arguments.host, experiment, chosen_run, arguments.max_mb))
    run = find(arguments.run)
    version, experiment = promote(run), str(load_config(run).experiment_name)
    print(f"{champion(experiment)} is now version {version}, of {run.folder}")
    try:
        is_default = experiment == compose(project.current().script).experiment_name
    except UserError:  # a project without this script
        is_default = False
    print("serve it     make serve" + ("" if is_default else f' ARGS="--experiment {experiment}"'))
