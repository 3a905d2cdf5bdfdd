"""Predict the class of new images with a trained model; a table on standard output, or in a file.

    python -m ml_project.predict photo.png folder/of/images
    python -m ml_project.predict data/processed/test_images.npy --model runs/digits/… --output answers.parquet
    python -m ml_project.predict photo.png --model models:/ml_project-digits@champion

An image is made grey, if the model expects that, and resized to what it expects: bright ink on dark ground as in the
digits. A `.npz` or `.npy` file holds images as N C H W: float32 as the model saw them in the training, or uint8.
A `.csv` file holds rows with the columns of the table that the model was trained on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import runengine
from runengine import Run, UserError

from .datasets import others
from .images import read_image
from .tables import read_table

if TYPE_CHECKING:  # a training does without
    import pandas as pd

IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
ARRAYS = {".npy", ".npz"}
AT_ONCE = 1000  # images
KEPT = ("classes", "features", "mean", "std")  # of what is known of the data, what goes with the model


class Model(NamedTuple):
    """A trained model, wherever it was loaded from."""

    probabilities: Callable[[np.ndarray], np.ndarray]  # images_NCHW float32 -> probabilities_NK float32
    input_shape: tuple[int, ...]
    data: Mapping[str, Any]  # what the run's data.json says


def load(name: str | None) -> Model:
    """The model of a run's folder, of a checkpoint in it, or of MLflow (`models:/...`, `runs:/...`)."""
    if name and name.startswith(("models:/", "runs:/")):
        served = runengine.load_model(name)
        _, *input_shape = served.metadata.signature.inputs.inputs[0].shape
        return Model(served.predict, tuple(input_shape), served.metadata.metadata or {})
    import torch

    run, checkpoint = runengine.find_checkpoint(name)
    cfg, task, _ = runengine.load(checkpoint)

    def probabilities(images_NCHW: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            answers: np.ndarray = task(torch.from_numpy(images_NCHW)).softmax(dim=1).numpy()
        return answers

    return Model(probabilities, tuple(cfg.data.input_shape), runengine.read_data(run))


def predict(model: Model, files: Sequence[Path]) -> pd.DataFrame:
    """A row for each image in these files and folders: where it is, its most probable class and that probability."""
    import pandas as pd

    classes, rows = model.data.get("classes"), []
    for file in _expand(files):
        images_NCHW = read_images(file, model.input_shape, model.data)
        place = os.fsencode(file).decode(errors="backslashreplace")  # names may be no UTF-8
        _refuse_no_numbers(images_NCHW, file, 0, "it holds NaN, or more than float32 can hold. Fix it or leave it out.")
        for start in range(0, len(images_NCHW), AT_ONCE):
            probabilities_NK = model.probabilities(images_NCHW[start : start + AT_ONCE])
            _refuse_no_numbers(probabilities_NK, file, start, "the model answers with NaN. Give another --model.")
            num_classes = probabilities_NK.shape[1]
            if classes and len(classes) != num_classes:
                raise UserError(
                    f"the model answers for {num_classes} classes, but its data.json names {len(classes)}. Bring back "
                    "that file, from the run's artifacts in MLflow."
                )
            for index, probabilities_K in enumerate(probabilities_NK, start):
                label = int(probabilities_K.argmax())
                name = classes[label] if classes else str(label)
                rows.append((place, index, label, name, float(probabilities_K[label])))
    return pd.DataFrame(rows, columns=["file", "index", "label", "class", "probability"])


def _refuse_no_numbers(array: np.ndarray, file: Path, first: int, problem: str) -> None:
    """Each class is as good as any other where there is no number."""
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if len(bad):
        raise UserError(f"{file}, example {first + bad[0]}{others(len(bad))}: {problem}")


def read_images(file: Path, input_shape: tuple[int, ...], data: Mapping[str, Any]) -> np.ndarray:
    """Images of a file as float32, N C H W; `data` is what the run's `data.json` says."""
    if not file.is_file():
        raise UserError(f"{file} does not exist. Give image files, folders of them, .csv, .npy or .npz.")
    if file.suffix == ".csv":
        return read_table(file, data)
    if len(input_shape) != 3 and file.suffix not in ARRAYS:
        raise UserError(f"{file} is no table, but the model was trained on one. Give .csv files, .npy or .npz.")
    try:
        if file.suffix in ARRAYS:
            with file.open("rb") as opened:
                images = np.load(opened, allow_pickle=False)
                images = images["images"] if file.suffix == ".npz" else images
        else:
            images = read_image(file, input_shape)[None]
    except PermissionError:
        raise
    except Exception:  # what is raised depends on how it is damaged, or claims to be larger than any memory
        raise UserError(f"{file} is neither an image nor an array `images`. Give image files, .npy or .npz.") from None
    if images.shape[1:] != input_shape:
        raise UserError(f"{file} must hold images of the shape N, {str(input_shape)[1:-1]}, got {images.shape}.")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UserError(f"{file} must hold uint8, or floats as the model saw them in the training, got {images.dtype}.")
    scale = 255 if images.dtype == np.uint8 else 1
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        return np.ascontiguousarray(images, dtype=np.float32) / np.float32(scale)


def export(run: Run) -> None:
    """Write the best model for `make promote`, `serve` and `export`: images N C H W in, probabilities N K out."""
    import torch

    from .data import as_float

    _, task, data = runengine.load(run)
    images_NCHW, labels_N = data.split("test").__getitems__(range(len(data.split("test")))[:AT_ONCE])

    def accuracy(probabilities_NK: torch.Tensor) -> dict[str, float]:
        return {"test/accuracy": float((probabilities_NK.argmax(dim=1) == labels_N).float().mean())}

    model = torch.nn.Sequential(task.model, torch.nn.Softmax(dim=1))
    kept = {key: value for key, value in runengine.read_data(run).items() if key in KEPT}
    runengine.save_model(run, model, as_float(images_NCHW), kept, accuracy)


def _expand(files: Sequence[Path]) -> Iterator[Path]:
    """A folder stands for the images in it, at any depth."""
    for file in files:
        inside = sorted(found for found in file.rglob("*") if found.suffix.lower() in IMAGES | ARRAYS)
        if file.is_dir() and not inside:
            raise UserError(f"{file} holds no images ({', '.join(sorted(IMAGES | ARRAYS))}).")
        yield from inside if file.is_dir() else [file]


def main() -> None:
    summary = "Predict the class of new images with a trained model."
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.predict", description=summary)
    parser.add_argument("files", nargs="+", type=Path, help="images, folders of images, or arrays as .npy or .npz")
    parser.add_argument("--model", help="a run's folder, a checkpoint, or models:/...; without it the newest run")
    parser.add_argument("--output", type=runengine.typed_table, help="a .csv or .parquet file, else standard output")
    arguments = parser.parse_args()
    runengine.write_table(predict(load(arguments.model), arguments.files), arguments.output)


if __name__ == "__main__":
    with runengine.friendly_errors():
        main()
