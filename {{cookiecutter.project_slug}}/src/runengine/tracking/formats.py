"""The formats in which a model leaves: a file that is run by a runtime other than this project.

`onnx` is for onnxruntime, `pt2` (torch.export's) for PyTorch without the project's code. `mlflow` is a folder of
MLflow's around a `pt2`, for `make promote` and `make serve`: a model that torch.export cannot take is pickled there,
with a copy of the project's code. The other two are made from one program of torch.export that takes any number of
examples.
"""

from __future__ import annotations

import importlib.util
import json
import linecache
import logging
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs.run import Run
from ..settings import project
from ..settings.console import first_line
from ..settings.errors import UserError
from . import mlflow_client
from .parity import Saved, Served

if TYPE_CHECKING:
    import numpy as np
    import torch

BATCH = "batch"  # what the free number of examples is called
EXAMPLES = 2  # are exported with: torch.export takes 1 for a constant
ONNX = ("onnx", "onnxruntime", "onnxscript")  # packages
NO_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\) node with name 'node_(\w+)'")

log = logging.getLogger(__name__)

Write = Callable[[Path, Served], Saved]


def write_onnx(file: Path, served: Served) -> Saved:
    """Needs the extra `onnx`. The metadata stand in the file, each value as JSON."""
    missing = [name for name in ONNX if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the format onnx needs {', '.join(missing)}, which is not installed. `make export FORMAT=onnx` says how "
            "to install it; without it: make export FORMAT=pt2"
        )
    import onnxruntime
    import torch

    program = capture(served)
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it says which packages are absent that a model might need
    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[*served.inputs],
            output_names=[*served.outputs],
            dynamic_shapes=tuple({0: BATCH} for _ in served.inputs),  # the program has a name of its own for it
        )
        assert made is not None  # it is returned where no file is named
        made.model.metadata_props.update({key: json.dumps(value) for key, value in served.metadata.items()})
        made.save(file)
        return load_onnx(file, f"onnxruntime {onnxruntime.__version__}")
    except Exception as error:
        raise UserError(_why_not_onnx(error, program)) from error
    finally:
        logger.setLevel(before)


def load_onnx(file: Path, runtime: str = "onnxruntime") -> Saved:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return Saved(lambda batch: session.run(None, dict(zip(names, batch, strict=True))), runtime)


def write_pt2(file: Path, served: Served) -> Saved:
    """The metadata stand in the file, as `metadata.json`."""
    import torch

    more = {"metadata.json": json.dumps(served.metadata)}
    with file.open("wb") as opened:  # by its name, torch.export would refuse one that ends otherwise than .pt2
        torch.export.save(capture(served), opened, extra_files=more)
    return load_pt2(file)


def load_pt2(file: Path) -> Saved:
    import torch

    with file.open("rb") as opened:
        module = torch.export.load(opened).module()

    def answer(batch: Any) -> list[np.ndarray]:
        with torch.inference_mode():
            answers = module(*(torch.from_numpy(each) for each in batch))
        if isinstance(answers, torch.Tensor):
            return [answers.numpy()]
        return [each.numpy() for each in (answers.values() if isinstance(answers, Mapping) else answers)]

    return Saved(answer, f"torch {torch.__version__}")


def capture(served: Served) -> torch.export.ExportedProgram:
    """The model as a program of torch.export that takes any number of examples.

    Raises:
        UserError: it cannot be followed; with the line that is in the way.
    """
    import torch

    examples = tuple(each[:EXAMPLES] for each in served.inputs.values())
    free = tuple({0: torch.export.Dim(BATCH)} for _ in examples)
    errors = []
    for strict in (
        False,
        True,
    ):  # the second way follows some Python that the first does not, such as numpy's functions
        try:
            return torch.export.export(served.model, examples, dynamic_shapes=free, strict=strict)
        except Exception as error:  # of many kinds: what torch.export cannot follow
            errors.append(error)
    raise UserError(_why_not_captured(errors[0])) from errors[0]


def refuse_several(served: Served) -> None:
    """MLflow's server of PyTorch's models knows one tensor alone.

    Raises:
        UserError: the model has several inputs or outputs.
    """
    if len(served.inputs) > 1 or len(served.outputs) > 1:
        raise UserError(
            f"MLflow serves a model of one tensor in and one out, and this one has {', '.join(served.inputs)} in and "
            f"{', '.join(served.outputs)} out. Make one of them, or export it: make export FORMAT=onnx"
        )


def write_mlflow(folder: Path, served: Served, serialization: str = "pt2") -> Saved:
    """A folder that `mlflow.pyfunc.load_model` loads where torch and MLflow are."""
    mlflow_client.quiet_mlflow()
    import mlflow.pyfunc
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    (inputs,), (outputs,) = served.inputs.values(), served.outputs.values()
    spec: list[Any] = [TensorSpec(each.numpy().dtype, (-1, *each.shape[1:])) for each in (inputs, outputs)]
    owner = project.current()
    mlflow.pytorch.save_model(
        served.model,
        folder,
        serialization_format=serialization,
        code_paths=[str(owner.folder), str(project.ENGINE_FOLDER)] if serialization == "pickle" else None,
        signature=ModelSignature(Schema(spec[:1]), Schema(spec[1:])),
        input_example=inputs[:EXAMPLES].numpy(),
        pip_requirements=[
            f"torch=={torch.__version__}",
            f"mlflow=={mlflow.__version__}",
            f"numpy=={np.__version__}",
        ],
        metadata=served.metadata,
    )
    loaded = mlflow.pyfunc.load_model(str(folder))  # as whoever serves it does
    return Saved(lambda batch: [np.asarray(loaded.predict(batch[0]))], f"MLflow {mlflow.__version__}")


def write_pickle(folder: Path, served: Served) -> Saved:
    return write_mlflow(folder, served, "pickle")


FORMATS: dict[str, tuple[str, tuple[Write, ...]]] = {  # the file in the run's folder; the first way that works is taken
    "mlflow": (Run.model.name, (write_mlflow, write_pickle)),
    "onnx": ("exports/model.onnx", (write_onnx,)),
    "pt2": ("exports/model.pt2", (write_pt2,)),
}


def _why_not_captured(error: Exception) -> str:
    place = _place(error)
    at = f"{place}: " if place else ""
    if type(error).__name__ == "GuardOnDataDependentSymNode":
        return (
            f"{at}which way the model takes there depends on the values that it is given, and a program of "
            "torch.export has one way. Compute both and choose by torch.where, or decide it outside of the model."
        )
    if "Constraints violated" in str(error):
        return (
            f"the model takes {EXAMPLES} examples and no other number: somewhere the size of the batch is a number, as "
            "in x.reshape(2, -1), or compared with one. Take len(x) instead."
        )
    return f"{at}torch.export cannot follow the model there: {type(error).__name__}: {first_line(error)}"


def _why_not_onnx(error: Exception, program: torch.export.ExportedProgram) -> str:
    unknown, missing = NO_FUNCTION.search(str(error)), NO_KERNEL.search(str(error))
    if not (unknown or missing):
        return f"it cannot be written as ONNX: {type(error).__name__}: {first_line(error)} Try: make export FORMAT=pt2"
    nodes = program.run_decompositions().graph.nodes
    if unknown:
        used = [node for node in nodes if str(node.target).startswith(f"{unknown[1]}.")]
        lacks = f"ONNX has no operation {unknown[1]}"
    else:
        assert missing
        used = [node for node in nodes if node.name == missing[2]]
        lacks = f"onnxruntime has no {missing[1]} for such types"
    lines = [_own_line(frame) for node in used for frame in _frames(node.meta.get("stack_trace") or "")]
    place = next((line for line in reversed(lines) if line), "")
    by = f", which {place} needs" if place else ""
    return f"{lacks}{by}. Write it with other ones, or take: make export FORMAT=pt2"


def _place(error: BaseException) -> str:
    """The last line of the owner's code that an error passed through."""
    while error.__cause__:
        error = error.__cause__
    places = [_own_line((frame.filename, frame.lineno or 0)) for frame in traceback.extract_tb(error.__traceback__)]
    return next((place for place in reversed(places) if place), "")


def _frames(stack: str) -> list[tuple[str, int]]:
    return [(file, int(number)) for file, number in re.findall(r'File "(.+?)", line (\d+)', stack)]


def _own_line(frame: tuple[str, int]) -> str:
    """`src/my_project/model.py:12 (x.item())`, of a line of the owner's package; empty for another."""
    file, number = frame
    owner = project.current().folder
    if not Path(file).is_relative_to(owner):
        return ""
    shown = Path("src") / owner.name / Path(file).relative_to(owner)
    return f"{shown.as_posix()}:{number} ({linecache.getline(file, number).strip()})"
