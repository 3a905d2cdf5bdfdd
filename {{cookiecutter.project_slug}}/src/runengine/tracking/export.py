"""The trained model in a form that leaves the project, made when it is asked for, and compared with the model itself.

    python -m runengine export                                   # the newest run's, as ONNX
    python -m runengine export runs/digits/... --format pt2      # a program of PyTorch's, without this project's code

`promote`, `serve` and a run with `register=true` want MLflow's format. All of them call `export` of the owner's
`predict`, which calls `save_model`. What the comparison found stands in the run's `exports.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs.find import find
from ..runs.resolve import code_changed_since
from ..runs.run import Run
from ..settings import process, project
from ..settings.console import first_line, listed
from ..settings.errors import UserError, explain
from ..settings.files import atomic_write, read_json, sha256
from .formats import FORMATS, Write, refuse_several
from .parity import Measure, Served, compare
from .results import send_again

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)


def export(run: Run, format: str) -> dict[str, Any]:
    """Make this form of the run's model by the owner's `export`; returns what `exports.json` says of it.

    Raises:
        UserError: there is no such function, or what it exports is refused.
    """
    name = run.export_module()
    function = getattr(importlib.import_module(name), "export", None) if importlib.util.find_spec(name) else None
    if function is None:
        file = f"src/{name.replace('.', '/')}.py"
        raise UserError(
            f"{run.folder} has no model to export: {file} has no function `export(run)` that makes it. Write one: it "
            "calls runengine.save_model."
        )
    print(f"exporting the model of {run.folder}", file=sys.stderr)
    if changed := code_changed_since(run):
        log.warning("the model is exported by today's code: %s changed since the run was trained", listed(changed))
    place = run.folder / FORMATS[format][0]
    before = place.stat().st_ino if place.exists() else None
    function(Run(run.folder, run.starts_over, format))
    if (
        not place.exists() or place.stat().st_ino == before
    ):  # an earlier one may be there: each is made under another name
        raise UserError(f"{name}.export has made no model for {run.folder}. Let it call runengine.save_model.")
    made: dict[str, Any] = read_json(run.exports)[format]
    return made


def have_model(run: Run) -> None:
    """See that the run has its `model/` in MLflow's format, and that it is the one that was compared.

    Raises:
        UserError: it cannot be exported, or what is there is not what was compared.
    """
    if not run.model.is_dir():
        export(run, "mlflow")
    elif read_json(run.exports).get("mlflow", {}).get("sha256") != hash_of(run.model):
        raise UserError(
            f"{run.model} is not the model that was compared with the run's checkpoint. Delete the folder, and it is "
            f"exported again: rm -r {run.model}"
        )


def export_after_training(run: Run) -> None:
    """See that the run has its model for the registry; what goes wrong does not fail a training that is finished."""
    try:
        have_model(run)
    except Exception as error:
        sentence = explain(error) or f"{type(error).__name__}: {first_line(error)}"
        again = f"make promote RUN={run.folder}"
        unexpected = None if isinstance(error, UserError) else error
        log.warning("the model is not registered: %s. Try again: %s", sentence.rstrip("."), again, exc_info=unexpected)


def save_model(
    run: Run,
    model: nn.Module,
    inputs: torch.Tensor | Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any],
    measure: Measure | None = None,
) -> None:
    """Write the model into the run's folder in the form that was asked for, unless it answers otherwise there.

    Of several processes of one run the first writes it, and the others do nothing.

    Args:
        run: whose model it is.
        model: tensors in; a tensor out, or a tuple or dictionary of them; all with the batch as their first dimension.
        inputs: a batch of real data, best of the test split, as an example and for the comparison: three examples or
            more. Several inputs by their names, in the order in which the model takes them.
        metadata: goes with the model; plain types.
        measure: the answers to all `inputs` -> metrics, to say what they are before and after.

    Raises:
        UserError: nothing can be exported, or what was exported answers otherwise; nothing is left of it.
    """
    if process.rank() != 0:
        return
    import torch

    name, ways = FORMATS[run.export_format]
    place = run.folder / name
    new = place.with_name(f"{place.name}.new")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow and torch.export about themselves
        try:
            named = {"input": inputs} if isinstance(inputs, torch.Tensor) else inputs
            # torch.export would ask for the strides of a cut-out tensor, which nobody sends
            real = {key: each.detach().cpu().contiguous() for key, each in named.items()}
            served = Served(model.cpu().eval(), real, metadata)
            if run.export_format == "mlflow":
                refuse_several(served)
            report = _write(new, served, ways, measure)
        except Exception as error:  # whatever a model or an exporter raises
            _delete(new)
            if new.parent != run.folder and new.parent.is_dir() and not any(new.parent.iterdir()):
                new.parent.rmdir()
            known = isinstance(error, UserError)
            why = str(error) if known else f"{type(error).__name__}: {first_line(error)}"
            log.debug("export", exc_info=not known)
            raise UserError(f"the model of {run.folder} is not exported: {why}") from error
    _delete(place)
    new.replace(place)
    about = {"file": name, "bytes": sum(file.stat().st_size for file in _files(place)), "sha256": hash_of(place)}
    atomic_write(
        run.exports, json.dumps({**read_json(run.exports), run.export_format: about | report}, indent=2) + "\n"
    )


def _write(new: Path, served: Served, ways: Sequence[Write], measure: Measure | None) -> dict[str, Any]:
    """Write and compare, in the first of these ways that works."""
    _delete(new)
    new.parent.mkdir(exist_ok=True)
    *preferred, last = ways
    for write in preferred:
        try:
            return compare(served, write(new, served), measure)
        except Exception as error:  # of many kinds: what torch.export cannot follow, or follows on one path alone
            why = first_line(error)
            log.warning("torch.export cannot take the model (%s): it is pickled, with a copy of the code", why)
            _delete(new)
    return compare(served, last(new, served), measure)


def hash_of(place: Path) -> str:
    """SHA-256 of a file; of a folder, of its files and their names."""
    if place.is_file():
        return sha256(place)
    names = [f"{file.relative_to(place).as_posix()} {sha256(file)}\n" for file in _files(place)]
    return hashlib.sha256("".join(names).encode()).hexdigest()


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return sorted(file for file in place.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def _delete(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def in_words(made: Mapping[str, Any]) -> str:
    """What `exports.json` says of one format, for people."""
    lines = [
        f"exported       {made['file']}, {made['bytes'] / 1e6:.3g} MB, run by {made['runtime']}",
        f"compared       {made['examples']} real examples: answers differ by {made['difference']:.1e} of the greatest; "
        f"rounding explains {made['rounding']:.1e}",
    ]
    lines += [f"{name:14} {before:.6g} before, {after:.6g} after" for name, (before, after) in made["metrics"].items()]
    times = [
        f"{size} at once {after:.3g} ms (the model itself {before:.3g})"
        for size, (before, after) in made["latency_ms"].items()
    ]
    return "\n".join([*lines, f"time           {', '.join(times)}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m {project.ENGINE} export", description="Export a run's best model, and compare it."
    )
    parser.add_argument(
        "run", nargs="?", help="the folder of a run, or the id of its MLflow run; without it the newest"
    )
    parser.add_argument("--format", choices=[name for name in FORMATS if name != "mlflow"], default="onnx")
    arguments = parser.parse_args()
    run = find(arguments.run)
    print(in_words(export(run, arguments.format)))
    print(f"run folder     {os.path.relpath(run.folder)}")
    send_again(run)
