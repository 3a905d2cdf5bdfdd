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
import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runengine
from runengine import Run, UserError

from .datasets import read_image, read_table

if TYPE_CHECKING:
    import numpy as np

SUMMARY = "Predict the class of new images with a trained model."
IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
ARRAYS = {".npy", ".npz"}
COLUMNS = ("file", "index", "label", "class", "probability")
AT_ONCE = 1000  # images
KEPT = ("classes", "features", "mean", "std")  # of what is known of the data, what goes with the model


@dataclass(frozen=True)
class Model:
    """images_NCHW float32 -> probabilities_NK float32."""

    probabilities: Callable[[np.ndarray], np.ndarray]
    image_shape: tuple[int, ...]
    classes: Sequence[str] | None
    data: Mapping[str, Any]  # what the run's data.json says


@dataclass(frozen=True)
class Answer:
    """For one image: its file, its place in the file, the most probable class, and how probable it is."""

    file: Path
    index: int
    label: int
    name: str
    probability: float


def load(name: str | None) -> Model:
    """The model of a run's folder, of a checkpoint in it, or of MLflow (`models:/...`, `runs:/...`).

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    if name and name.startswith(("models:/", "runs:/")):
        return _from_mlflow(name)
    if name and name.endswith(".ckpt"):
        checkpoint = Path(name)
        if not checkpoint.is_file():
            raise UserError(f"{checkpoint} does not exist. Give a checkpoint, the folder of a run, or models:/...")
        return _from_run(Run(checkpoint.parent.parent), checkpoint)
    run = runengine.find(name)
    return _from_run(run, run.best)


def predict(model: Model, files: Sequence[Path]) -> Iterator[Answer]:
    """Of each image in these files and folders the answer, in order.

    Raises:
        UserError: a file is missing, is no image, or does not fit the model.
    """
    for file in _expand(files):
        images_NCHW = read_images(file, model.image_shape, model.data)
        for start in range(0, len(images_NCHW), AT_ONCE):
            probabilities_NK = model.probabilities(images_NCHW[start : start + AT_ONCE])
            for index, probabilities_K in enumerate(probabilities_NK, start):
                label = int(probabilities_K.argmax())
                name = model.classes[label] if model.classes else str(label)
                yield Answer(file, index, label, name, float(probabilities_K[label]))


def read_images(file: Path, image_shape: tuple[int, ...], data: Mapping[str, Any]) -> np.ndarray:
    """Images of a file as float32, N C H W; `data` is what the run's `data.json` says.

    Raises:
        UserError: the file is missing, is no image, or has another shape.
    """
    import numpy as np

    if not file.is_file():
        raise UserError(f"{file} does not exist. Give image files, folders of them, .csv, .npy or .npz.")
    if file.suffix == ".csv":
        return read_table(file, data)
    try:
        if file.suffix in ARRAYS:
            loaded = np.load(file, allow_pickle=False)
            images: np.ndarray = loaded["images"] if file.suffix == ".npz" else loaded
        else:
            images = read_image(file, image_shape)[None]
    except (ValueError, KeyError, EOFError):
        raise UserError(f"{file} is neither an image nor an array `images`. Give image files, .npy or .npz.") from None
    if images.ndim != 4 or images.shape[1:] != image_shape:
        raise UserError(f"{file} must hold images of the shape N, {str(image_shape)[1:-1]}, got {images.shape}.")
    scale = 255 if images.dtype == np.uint8 else 1
    return np.ascontiguousarray(images, dtype=np.float32) / np.float32(scale)


def write(answers: Iterator[Answer], file: Path | None) -> None:
    """As CSV on standard output, or into this `.csv` or `.parquet` file, which is there complete or not at all."""
    rows = ((str(each.file), each.index, each.label, each.name, each.probability) for each in answers)
    if file is None:
        table = csv.writer(sys.stdout)
        table.writerow(COLUMNS)
        table.writerows((*row, f"{probability:.4f}") for *row, probability in rows)
        return
    import pandas as pd

    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    with runengine.atomic_file(file) as new:
        frame.to_parquet(new, index=False) if file.suffix == ".parquet" else frame.to_csv(new, index=False)
    print(f"wrote {file}: {len(frame)} images", file=sys.stderr)


def export(run: Run) -> None:
    """Write the best model for MLflow, `make promote` and `make serve`: images N C H W in, probabilities N K out."""
    import torch

    from .data import as_float

    cfg, task, data = runengine.load(run)
    if not cfg.tracking.log_model:
        return
    images_NCHW = as_float(data.split("val").__getitems__(range(min(64, len(data.split("val")))))[0])
    known = runengine.read_data(run.folder)
    kept = {key: known[key] for key in KEPT if key in known}
    runengine.save_model(run, torch.nn.Sequential(task.model, torch.nn.Softmax(dim=1)), images_NCHW, kept)


def _from_run(run: Run, checkpoint: Path) -> Model:
    import torch

    cfg, task, _ = runengine.load(run)
    runengine.load_weights(task, checkpoint)

    def probabilities(images_NCHW: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            answers: np.ndarray = task(torch.from_numpy(images_NCHW)).softmax(dim=1).numpy()
        return answers

    data = runengine.read_data(run.folder)
    return Model(probabilities, tuple(cfg.data.image_shape), data.get("classes"), data)


def _from_mlflow(name: str) -> Model:
    loaded = runengine.load_model(name)
    _, *image_shape = loaded.metadata.signature.inputs.inputs[0].shape
    data = loaded.metadata.metadata or {}
    return Model(loaded.predict, tuple(image_shape), data.get("classes"), data)


def _expand(files: Sequence[Path]) -> Iterator[Path]:
    """A folder stands for the images in it, at any depth."""
    for file in files:
        if not file.is_dir():
            yield file
            continue
        images = sorted(inside for inside in file.rglob("*") if inside.suffix.lower() in IMAGES | ARRAYS)
        if not images:
            raise UserError(f"{file} holds no images ({', '.join(sorted(IMAGES | ARRAYS))}).")
        yield from images


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.predict", description=SUMMARY)
    parser.add_argument("files", nargs="+", type=Path, help="images, folders of images, or arrays as .npy or .npz")
    parser.add_argument("--model", help="a run's folder, a checkpoint, or models:/...; without it the newest run")
    parser.add_argument("--output", type=runengine.typed_path, help="a .csv or .parquet file, else standard output")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.suffix not in (".csv", ".parquet"):
        raise UserError(f"--output must end with .csv or .parquet, got {arguments.output}.")
    write(predict(load(arguments.model), arguments.files), arguments.output)


if __name__ == "__main__":
    with runengine.friendly_errors():
        main()
