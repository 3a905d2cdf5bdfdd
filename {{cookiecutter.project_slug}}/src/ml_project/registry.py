"""The trained model in MLflow's own format, its versions, and the one that is served.

    python -m ml_project.registry promote runs/digits/…    # or the id of its MLflow run; without, the newest run
    python -m ml_project.registry serve                    # the promoted one, on this machine only
    python -m ml_project.registry serve runs/digits/…      # that run's, without asking MLflow

The format is torch.export's: `mlflow.pyfunc.load_model` loads it where torch and MLflow are, without this package.
A model that torch.export cannot take is pickled, and a copy of this package goes with it.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import mirror, store
from .config import compose
from .errors import UserError, one_sentence
from .messages import first_line
from .run import Run, find, load_config, program

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

NAME = str(__package__)  # in the registry
CHAMPION = f"models:/{NAME}@champion"
PORT = 5001
KEPT = ("classes", "features", "mean", "std")

log = logging.getLogger(__name__)


def save_model(folder: Path, model: nn.Module, images_NCHW: np.ndarray, data: Mapping[str, Any]) -> None:
    """Write `model/` into the folder of a run: images N C H W float32 in, probabilities N K float32 out.

    Args:
        folder: of the run.
        model: on the CPU; images_BCHW -> logits_BK.
        images_NCHW: two images or more, as an example.
        data: what the run's `data.json` says; the names of the classes, and how a table was scaled, go with the model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow and torch.export about themselves
        _save(folder, model, images_NCHW, {key: data[key] for key in KEPT if key in data})


def _save(folder: Path, model: nn.Module, images_NCHW: np.ndarray, data: dict[str, Any]) -> None:
    store.quiet_mlflow()
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    whole = torch.nn.Sequential(model, torch.nn.Softmax(dim=1)).eval()
    with torch.inference_mode():
        num_classes = whole(torch.from_numpy(images_NCHW)).shape[1]
    spec: list[Any] = [
        TensorSpec(np.dtype("float32"), (-1, *shape)) for shape in (images_NCHW.shape[1:], (num_classes,))
    ]
    options: dict[str, Any] = {
        "signature": ModelSignature(Schema(spec[:1]), Schema(spec[1:])),
        "input_example": images_NCHW,
        "pip_requirements": [
            f"torch=={torch.__version__}",
            f"mlflow=={mlflow.__version__}",
            f"numpy=={np.__version__}",
        ],
        "metadata": data,
    }
    new, place = folder / "model.new", folder / "model"
    shutil.rmtree(new, ignore_errors=True)
    try:
        mlflow.pytorch.save_model(whole, new, serialization_format="pt2", **options)
    except Exception as error:  # of many kinds: what torch.export cannot follow
        log.warning(
            "torch.export cannot take the model (%s): it is pickled, with a copy of the code", first_line(error)
        )
        shutil.rmtree(new, ignore_errors=True)
        code = [str(Path(__file__).parent)]
        mlflow.pytorch.save_model(whole, new, serialization_format="pickle", code_paths=code, **options)
    shutil.rmtree(place, ignore_errors=True)
    new.replace(place)


def promote(run: Run) -> int:
    """Make the run's model a version in the registry, and that one the champion; returns the version.

    Raises:
        UserError: the run is not finished, is not tracked, or MLflow does not take it.
    """
    if not run.finished():
        raise UserError(f"{run.folder} is not finished. Run: {program('train')} run_dir={run.folder}")
    uri = load_config(run).tracking.mlflow_uri
    if uri is None:
        raise UserError(
            f"{run.folder} was trained with tracking=off: MLflow does not know it. Train with tracking=mlflow."
        )
    _export_if_missing(run)
    try:
        mirror.send_all(run.folder, uri)
        client = store.mlflow_client(uri)
        run_id = run.mlflow_run_id.read_text(encoding="utf-8").strip()
        version = mirror.register(client, run_id, NAME)
        client.set_registered_model_alias(NAME, CHAMPION.rpartition("@")[2], str(version))
    except Exception as error:
        raise UserError(store.trouble(uri, error)) from error
    return version


def serve(port: int, host: str, run: Run | None = None) -> int:
    """Serve the champion, or the model of this run, until it is stopped; returns the exit status.

    Raises:
        UserError: there is no champion.
    """
    env = dict(os.environ)
    if run is None:
        env["MLFLOW_TRACKING_URI"] = address_of_store()
        model, served = CHAMPION, f"{CHAMPION}, {_champion(env['MLFLOW_TRACKING_URI'])}"
    else:
        _export_if_missing(run)
        model = served = str(run.folder / "model")
    address = f"http://{host}:{port}"
    print(f"{served}: {address}   (Ctrl-C ends it)")
    example = "-H 'Content-Type: application/json' -d @runs/.../model/serving_input_example.json"
    print(f"ask it:  curl {address}/invocations {example}")
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local",
               "--host", host, "--port", str(port)]  # fmt: skip
    try:
        return subprocess.call(command, env=env)
    except KeyboardInterrupt:
        return 0


def _champion(uri: str) -> str:
    name, _, alias = CHAMPION.removeprefix("models:/").partition("@")
    try:
        version = store.mlflow_client(uri).get_model_version_by_alias(name, alias)
    except Exception as error:
        if store.is_absent(error):
            raise UserError(f"no model of {NAME} has been promoted yet. Run: make promote") from None
        raise UserError(store.trouble(uri, error)) from error
    return f"version {version.version} of run {version.run_id}"


def _export_if_missing(run: Run) -> None:
    if not (run.folder / "model").is_dir():  # it was trained with tracking.log_model=false
        from .train import export

        export(run)


def address_of_store() -> str:
    """Where this project's runs and models are recorded.

    Raises:
        UserError: nowhere.
    """
    uri: str | None = compose("train").tracking.mlflow_uri
    if uri is None:
        raise UserError("conf/train.yaml says tracking: off, so there is no registry of models. Say tracking: mlflow.")
    return uri


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=program("registry"), description="Choose the model that is served, and serve it."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    chosen = commands.add_parser("promote", help="make this run's model the champion")
    chosen.add_argument("run", nargs="?", help="a run's folder, or the id of its MLflow run; without it the newest")
    served = commands.add_parser("serve", help="serve the champion on this machine")
    served.add_argument("run", nargs="?", help="a run's folder, or the id of its MLflow run, in place of the champion")
    served.add_argument("--port", type=int, default=PORT)
    served.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container: whoever reaches it may ask")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        sys.exit(serve(arguments.port, arguments.host, find(arguments.run) if arguments.run else None))
    run = find(arguments.run)
    print(f"{CHAMPION} is now version {promote(run)}, of {run.folder}")
    print("serve it     make serve")


if __name__ == "__main__":
    with one_sentence():
        main()
