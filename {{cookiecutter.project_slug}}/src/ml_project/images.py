"""Images in files: a folder for each class, or one image for `predict`.

    python -m ml_project.prepare dataset=images 'dataset.size=[32,32]'

Legend: N images, C channels, H W pixels.
"""

from __future__ import annotations

import math
import struct
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runengine import UserError, listed

from .datasets import SPLITS, RawDataset, others

LARGE_BYTES = 1 << 30  # images beyond are collected in a file
OF_THE_SYSTEM = {"Thumbs.db", "desktop.ini"}  # what Windows leaves next to images


def from_folder(folder: str, size: Sequence[int], grey: bool) -> RawDataset:
    """One folder of images for each class, in `folder` itself or in its train/, test/ and perhaps val/.

    Args:
        folder: holds cat/1.png or train/cat/1.png.
        size: height and width to which every image is resized.
        grey: one channel instead of three.
    """
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"dataset.size must be height and width, such as [64,64], got {list(size)}.")
    files, labels, predefined = find_images(Path(folder))
    shape_NCHW = (len(files), 1 if grey else 3, *size)
    if math.prod(shape_NCHW) <= LARGE_BYTES:
        images_NCHW = np.empty(shape_NCHW, np.uint8)
    else:
        with tempfile.TemporaryFile(dir=".") as file:  # it has no name, and goes with the array
            images_NCHW = np.memmap(file, np.uint8, "w+", shape=shape_NCHW)
    broken = []
    for row, image in enumerate(tqdm(files, desc="reading", unit=" images", disable=None)):  # only on a terminal
        try:
            images_NCHW[row] = read_image(image, shape_NCHW[1:])
        except UserError:
            broken.append(image)
    if broken:
        raise UserError(f"{broken[0]}{others(len(broken))} cannot be read as an image. Fix or delete what is no image.")
    return RawDataset(images_NCHW, np.array(labels), predefined_splits=predefined)


def read_image(file: Path, shape: Sequence[int]) -> np.ndarray:
    """An image file as uint8, C H W, resized to this shape; with one channel it is made grey."""
    from PIL import Image, ImageOps

    channels, height, width = shape
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)  # photos lie on their side otherwise
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # convert() would clip
            image = image.convert("L" if channels == 1 else "RGB").resize((width, height))
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        raise UserError(f"{file} cannot be read as an image.") from None
    pixels_CHW: np.ndarray = np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
    return pixels_CHW


def find_images(root: Path) -> tuple[list[Path], list[str], dict[str, np.ndarray]]:
    """Each image's file and class, and the rows of splits that are there already."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. Put a folder of images for each class there, or set dataset.folder.")
    names = [folder.name for folder in _folders(root)]
    if "train" in names and (strange := sorted(set(names) - set(SPLITS))):
        raise UserError(f"{root} holds train and {listed(strange)}: next to train only val and test may be.")
    files: list[Path] = []
    labels: list[str] = []
    predefined = {}
    for split in [split for split in SPLITS if split in names] if "train" in names else [""]:
        first = len(files)
        for folder in _folders(root / split):
            found = [file for file in _visible(folder.rglob("*"), folder) if file.is_file()]
            if not found:
                raise UserError(f"{folder} holds no images. Put the images of this class there, or delete the folder.")
            if split in ("val", "test") and folder.name not in labels:
                raise UserError(f"{folder} is a class that train lacks. Its classes: {listed(sorted(set(labels)))}.")
            files += found
            labels += [folder.name] * len(found)
        if not files:
            where = root / split
            raise UserError(f"{where} holds no folders. Put the images of each class into one: {where}/cat/1.png.")
        if split in ("val", "test") and len(files) > first:
            predefined[split] = np.arange(first, len(files))
    return files, labels, predefined


def _folders(root: Path) -> list[Path]:
    return [folder for folder in _visible(root.iterdir(), root) if folder.is_dir()]


def _visible(paths: Iterable[Path], root: Path) -> list[Path]:
    """Sorted; what is below a hidden folder is hidden, too."""
    paths = [path for path in paths if path.name not in OF_THE_SYSTEM]
    return sorted(path for path in paths if "/." not in f"/{path.relative_to(root).as_posix()}")
