"""Predict the class of new images with a run's best checkpoint; a CSV table on standard output.

    python -m ml_project.predict photo.png drawing.jpg
    python -m ml_project.predict data/processed/test.npz --run runs/digits/...

An image file is made grey and resized to what the model expects, bright ink on dark ground as in the digits.
A `.npz` or `.npy` file holds images as float32, N C H W, in 0..1.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError, one_sentence
from .run import Run, find, load_config, program

if TYPE_CHECKING:
    import numpy as np

SUMMARY = "Predict the class of new images with a run's best checkpoint."


def predict(run: Run, files: Sequence[Path]) -> Iterator[tuple[Path, int, int, float]]:
    """For each image: its file, its place in the file, the class, and the probability the model gives to it.

    Raises:
        UserError: a file is missing, is no image, or does not fit the model.
    """
    import torch

    from .train import build_task, load_weights

    cfg = load_config(run)
    task = build_task(cfg)
    load_weights(task, run.best)
    task.eval()
    for file in files:
        images_NCHW = torch.from_numpy(read_images(file, tuple(cfg.data.image_shape)))
        with torch.inference_mode():
            probabilities_NK = task(images_NCHW).softmax(dim=1)
        for index, (probability, label) in enumerate(zip(*probabilities_NK.max(dim=1), strict=True)):
            yield file, index, int(label), float(probability)


def read_images(file: Path, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Images of a file as float32, N C H W, in 0..1.

    Raises:
        UserError: the file is missing, is no image, or has another shape.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if not file.is_file():
        raise UserError(f"{file} does not exist. Give image files, .npy or .npz.")
    try:
        if file.suffix in (".npy", ".npz"):
            loaded = np.load(file, allow_pickle=False)
            images: np.ndarray = np.asarray(loaded["images"] if file.suffix == ".npz" else loaded, dtype=np.float32)
        else:
            channels, height, width = image_shape
            image = Image.open(file).convert("L" if channels == 1 else "RGB").resize((width, height))
            pixels = np.asarray(image, dtype=np.float32) / 255
            images = pixels.reshape(1, height, width, channels).transpose(0, 3, 1, 2)
    except (UnidentifiedImageError, ValueError, KeyError, EOFError):
        raise UserError(f"{file} is neither an image nor an array `images`. Give image files, .npy or .npz.") from None
    if images.ndim != 4 or images.shape[1:] != image_shape:
        raise UserError(f"{file} must hold images of the shape N, {str(image_shape)[1:-1]}, got {images.shape}.")
    return np.ascontiguousarray(images)


def main() -> None:
    parser = argparse.ArgumentParser(prog=program("predict"), description=SUMMARY)
    parser.add_argument("files", nargs="+", type=Path, help="images, or arrays as .npy or .npz")
    parser.add_argument("--run", help="the folder of a run; without it the newest")
    arguments = parser.parse_args()
    table = csv.writer(sys.stdout)
    table.writerow(["file", "index", "label", "probability"])
    for file, index, label, probability in predict(find(arguments.run), arguments.files):
        table.writerow([file, index, label, f"{probability:.4f}"])


if __name__ == "__main__":
    with one_sentence():
        main()
