"""The trained model in MLflow's own format, made when it is asked for, kept only if it answers like the model itself.

`promote`, `serve` and a run with `register=true` call `export` of the owner's `predict`, which calls `save_model`. The
format is torch.export's: `mlflow.pyfunc.load_model` loads it where torch and MLflow are, without this project.
A model that torch.export cannot take is pickled, and a copy of the project's code goes with it.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs.resolve import code_changed_since
from ..runs.run import Run
from ..settings import process, project
from ..settings.console import first_line, listed
from ..settings.errors import UserError, explain
from . import mlflow_client

if TYPE_CHECKING:
    import torch
    from torch import nn

EXAMPLES = 2  # are exported with; the check then asks for all of the batch, so another batch size is tried
# between two programs of the same arithmetic on the same device; sums in another order differ by some units of rounding
RELATIVE, ABSOLUTE = 1e-3, 1e-4

log = logging.getLogger(__name__)


def have_model(run: Run) -> None:
    """See that the run has its `model/`: what is not there yet, the owner's `export` makes.

    Raises:
        UserError: there is no such function, or what it exports is refused.
    """
    if run.model.is_dir():
        return
    name = run.export_module()
    function = getattr(importlib.import_module(name), "export", None) if importlib.util.find_spec(name) else None
    if function is None:
        file = f"src/{name.replace('.', '/')}.py"
        raise UserError(
            f"{run.folder} has no model to serve: {file} has no function `export(run)` that makes it. Write one: it "
            "calls runengine.save_model."
        )
    print(f"exporting the model of {run.folder}", file=sys.stderr)
    if changed := code_changed_since(run):
        log.warning("the model is exported by today's code: %s changed since the run was trained", listed(changed))
    function(run)
    if not (run.model / "MLmodel").is_file():
        raise UserError(f"{name}.export has made no model for {run.folder}. Let it call runengine.save_model.")


def export_after_training(run: Run) -> None:
    """See that the run has its model for the registry; what goes wrong does not fail a training that is finished."""
    try:
        have_model(run)
    except Exception as error:
        sentence = explain(error) or f"{type(error).__name__}: {first_line(error)}"
        again = f"make promote RUN={run.folder}"
        unexpected = None if isinstance(error, UserError) else error
        log.warning("the model is not registered: %s. Try again: %s", sentence.rstrip("."), again, exc_info=unexpected)


def save_model(run: Run, model: nn.Module, inputs: torch.Tensor, metadata: Mapping[str, Any]) -> None:
    """Write `model/` into the run's folder, unless what was exported answers otherwise than the model.

    Of several processes of one run the first writes it, and the others do nothing.

    Args:
        run: whose model it is.
        model: one tensor in, one tensor out, both with the batch as their first dimension.
        inputs: a batch of real data, as an example and for the comparison: three examples or more.
        metadata: goes with the model; plain types.

    Raises:
        UserError: nothing can be exported, or what was exported answers otherwise; nothing is left of it.
    """
    if process.rank() != 0:
        return
    place, new = run.model, run.folder / "model.new"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow and torch.export about themselves
        try:
            # torch.export would ask for the strides of a cut-out tensor, which nobody sends
            _save(new, model.cpu().eval(), inputs.detach().cpu().contiguous(), dict(metadata))
        except Exception as error:  # whatever a model or an exporter raises
            shutil.rmtree(new, ignore_errors=True)
            known = isinstance(error, UserError)
            why = str(error) if known else f"{type(error).__name__}: {first_line(error)}"
            log.debug("export", exc_info=not known)
            raise UserError(f"the model of {run.folder} is not exported: {why}") from error
    shutil.rmtree(place, ignore_errors=True)
    new.replace(place)


def _save(new: Path, model: nn.Module, inputs: torch.Tensor, metadata: dict[str, Any]) -> None:
    mlflow_client.quiet_mlflow()
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    with torch.inference_mode():
        answers = model(inputs)
    if not isinstance(answers, torch.Tensor) or not answers.ndim or len(answers) != len(inputs):
        got = tuple(answers.shape) if isinstance(answers, torch.Tensor) else type(answers).__name__
        raise UserError(f"a served model must give one tensor with a row for each of {len(inputs)} inputs, got {got}.")
    spec: list[Any] = [TensorSpec(each.numpy().dtype, (-1, *each.shape[1:])) for each in (inputs, answers)]
    options: dict[str, Any] = {
        "signature": ModelSignature(Schema(spec[:1]), Schema(spec[1:])),
        "input_example": inputs[:EXAMPLES].numpy(),
        "pip_requirements": [
            f"torch=={torch.__version__}",
            f"mlflow=={mlflow.__version__}",
            f"numpy=={np.__version__}",
        ],
        "metadata": metadata,
    }
    shutil.rmtree(new, ignore_errors=True)
    try:
        mlflow.pytorch.save_model(model, new, serialization_format="pt2", **options)
        _compare(new, inputs, answers)
    except Exception as error:  # of many kinds: what torch.export cannot follow, or follows on one path alone
        log.warning(
            "torch.export cannot take the model (%s): it is pickled, with a copy of the code", first_line(error)
        )
        shutil.rmtree(new, ignore_errors=True)
        owner = project.current()
        code = [str(owner.folder), str(project.ENGINE_FOLDER)]
        mlflow.pytorch.save_model(model, new, serialization_format="pickle", code_paths=code, **options)
        _compare(new, inputs, answers)


def _compare(saved: Path, inputs: torch.Tensor, answers: torch.Tensor) -> None:
    """Ask what was saved, as whoever loads it does."""
    import mlflow.pyfunc
    import numpy as np
    import torch

    got = np.asarray(mlflow.pyfunc.load_model(str(saved)).predict(inputs.numpy()))
    wanted = answers.numpy()
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise UserError(
            f"the exported model gives {got.dtype} {got.shape} where the model gives {wanted.dtype} {wanted.shape}."
        )
    try:
        torch.testing.assert_close(torch.from_numpy(got), answers, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
    except AssertionError as error:
        worst = float(np.nanmax(np.abs(got.astype(np.float64) - wanted.astype(np.float64))))
        raise UserError(f"the exported model answers otherwise than the model, by up to {worst:.3g}.") from error
