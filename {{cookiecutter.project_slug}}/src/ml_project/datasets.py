"""Where the raw data come from: each function here gives `RawDataset`, and a file in `conf/dataset/` names it.

    python -m ml_project.prepare dataset=fashion_mnist

PUT YOUR OWN HERE: a function that returns `RawDataset(images, labels)`, and `conf/dataset/<name>.yaml` with its
`_target_` and its settings. `docs/bring-your-own-data.md` shows it step by step.

Legend: N rows, C channels, H W pixels, F features.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import math
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from runengine import UserError, download

SPLITS = ("train", "val", "test")
LARGE_BYTES = 1 << 30  # images beyond are collected in a file
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
OF_THE_SYSTEM = {"Thumbs.db", "desktop.ini"}  # what Windows leaves next to images
MISSING = {"", "?", "na", "n/a", "nan", "none", "null"}  # compared in lower case


@dataclass(frozen=True)
class RawDataset:
    """Raw data, one row an example.

    Args:
        images: N C H W; uint8, or float32 in 0..1. They may be a `np.memmap`, larger than memory.
        labels: N; words or numbers.
        classes: their names, where the labels are 0, 1, ...; without them each different label is a class, sorted.
        predefined_splits: the rows of the splits that the authors made, such as `{"test": rows}`; the others are drawn.
        features: the names of a table's columns, one image of 1 x 1 x F a row; they are standardised.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: Sequence[str] = ()
    predefined_splits: Mapping[str, np.ndarray] = field(default_factory=dict)
    features: Sequence[str] = ()


def digits() -> RawDataset:
    from sklearn.datasets import load_digits

    data = load_digits()
    images_NHW = data.images.astype(np.float32) / 16  # the pixels count from 0 to 16
    return RawDataset(images_NHW[:, None], data.target)


def fashion_mnist(folder: str, address: str, sha256: Mapping[str, str]) -> RawDataset:
    """What is missing of the four files is downloaded; the authors' test images stay the test split."""
    for name, checksum in sha256.items():
        download(f"{address.rstrip('/')}/{name}", Path(folder) / name, checksum)
    images, labels = (
        [_read_idx(Path(folder) / f"{part}-{kind}-ubyte.gz") for part in ("train", "t10k")]
        for kind in ("images-idx3", "labels-idx1")
    )
    first_of_test = len(images[0])
    rows = np.arange(first_of_test, first_of_test + len(images[1]))
    return RawDataset(np.concatenate(images)[:, None], np.concatenate(labels), FASHION, {"test": rows})


def images(folder: str, size: Sequence[int], grey: bool) -> RawDataset:
    """One folder of images for each class, in `folder` itself or in its train/, test/ and perhaps val/.

    Args:
        folder: holds cat/1.png or train/cat/1.png.
        size: height and width to which every image is resized.
        grey: one channel instead of three.
    """
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"dataset.size must be height and width, such as [64,64], got {list(size)}.")
    files, labels, predefined = _find_images(Path(folder))
    images_NCHW = _room((len(files), 1 if grey else 3, *size))
    broken = []
    for row, file in enumerate(tqdm(files, desc="reading", unit=" images", disable=None)):  # only on a terminal
        try:
            images_NCHW[row] = read_image(file, images_NCHW.shape[1:])
        except UserError:
            broken.append(file)
    if broken:
        raise UserError(f"{broken[0]}{_others(broken)} cannot be read as an image. Fix or delete what is no image.")
    return RawDataset(images_NCHW, np.array(labels), predefined_splits=predefined)


def _room(shape: tuple[int, ...]) -> np.ndarray:
    """An array to be filled, uint8; a large one lies in a file without a name, in the current folder."""
    if math.prod(shape) <= LARGE_BYTES:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile(dir=".") as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def read_image(file: Path, shape: Sequence[int]) -> np.ndarray:
    """An image file as uint8, C H W, resized to this shape; with one channel it is made grey.

    Raises:
        UserError: the file is no image.
    """
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


def table(file: str, label: str, ignore: Sequence[str]) -> RawDataset:
    """A CSV file: a line of names, then one row an example.

    Args:
        file: in UTF-8, separated by commas, semicolons or tabs.
        label: the column of the classes, words or numbers.
        ignore: columns that are left out, such as a number of the row.
    """
    names, rows = _read_csv(Path(file))
    for name in [label, *ignore]:
        if name not in names:
            setting = "dataset.label" if name == label else "dataset.ignore"
            nearest = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {nearest[0]}?" if nearest else f"Set {setting}."
            raise UserError(f"{file} has no column {name!r}: its columns are {_listed(names)}. {hint}")
    features = [name for name in names if name not in {label, *ignore}]
    if not features:
        raise UserError(f"{file} has no column other than {_listed([label, *ignore])}: nothing to learn from.")
    lines = list(rows)
    labels = [fields[names.index(label)].strip() for _, fields in lines]
    _refuse_missing(Path(file), [(number, label, text) for (number, _), text in zip(lines, labels, strict=True)])
    values_NF = _numbers(Path(file), names, features, lines)
    numbers = all(re.fullmatch(r"0|-?[1-9]\d{0,17}", text) for text in labels)  # as numbers, 10 comes after 9
    return RawDataset(values_NF[:, None, None], np.array(labels, dtype=np.int64 if numbers else str), features=features)


def read_table(file: Path, data: Mapping[str, Any]) -> np.ndarray:
    """New rows for a model that was trained on a table: float32, N 1 1 F, standardised as there.

    Args:
        file: a CSV file; the columns may stand in another order, and among others.
        data: the `features`, `mean` and `std` of the training, from `split.json` or the run's `data.json`.

    Raises:
        UserError: the columns are not those of the training, or a value is no number.
    """
    if "features" not in data:
        raise UserError(f"{file} is a table, but the model was not trained on one. Give --model=runs/... that was.")
    features, mean_F, std_F = data["features"], np.array(data["mean"]), np.array(data["std"])
    names, rows = _read_csv(file)
    if absent := [name for name in features if name not in names]:
        raise UserError(f"{file} lacks what the model was trained on: {_listed(absent)}.")
    values_NF: np.ndarray = (_numbers(file, names, features, list(rows)) - mean_F) / std_F
    return values_NF.astype(np.float32)[:, None, None]


def _read_idx(file: Path) -> np.ndarray:
    """The format of MNIST: two zero bytes, the type (8: uint8), the number of dimensions, each size, the values."""
    try:
        content = gzip.decompress(file.read_bytes())
        zeros, kind, num_dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{num_dimensions}I", content, offset=4)
        if (zeros, kind) != (0, 8):
            raise ValueError
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error, ValueError):
        raise UserError(f"{file} is not a file of the kind of MNIST's: gzip, and in it IDX of bytes.") from None


def _find_images(root: Path) -> tuple[list[Path], list[str], dict[str, np.ndarray]]:
    """Each image's file and class, and the rows of splits that are there already."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. Put a folder of images for each class there, or set dataset.folder.")
    names = [folder.name for folder in _folders(root)]
    splits = list(SPLITS) if "train" in names else [""]
    if "train" in names and (strange := set(names) - set(SPLITS)):
        raise UserError(f"{root} holds train and {_listed(sorted(strange))}: next to train only val and test may be.")
    files: list[Path] = []
    labels: list[str] = []
    predefined = {}
    for split in splits:
        first = len(files)
        for folder in _folders(root / split) if split in ("", *names) else []:
            found = sorted(file for file in folder.rglob("*") if file.is_file() and _visible(file, folder))
            if not found:
                raise UserError(f"{folder} holds no images. Put the images of this class there, or delete the folder.")
            if split in ("val", "test") and folder.name not in labels:
                raise UserError(f"{folder} is a class that train lacks. Its classes: {_listed(sorted(set(labels)))}.")
            files += found
            labels += [folder.name] * len(found)
        if split in ("val", "test") and len(files) > first:
            predefined[split] = np.arange(first, len(files))
        if split in ("", "train") and not files:
            where = root / split
            raise UserError(f"{where} holds no folders. Put the images of each class into one: {where}/cat/1.png.")
    return files, labels, predefined


def _folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and _visible(folder, root))


def _visible(file: Path, folder: Path) -> bool:
    return file.name not in OF_THE_SYSTEM and not any(p.startswith(".") for p in file.relative_to(folder).parts)


def _read_csv(file: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns, and each row with its number as a spreadsheet counts (the names are row 1)."""
    if not file.is_file():
        raise UserError(f"{file} does not exist. Put your table there, or set dataset.file.")
    try:
        text = file.read_text(encoding="utf-8-sig")  # Excel marks UTF-8 by three bytes
    except UnicodeDecodeError:
        raise UserError(f"{file} is no text in UTF-8. From Excel, save it as `CSV UTF-8`.") from None
    header = text.lstrip("\r\n").partition("\n")[0]
    separator = max(",;\t", key=header.count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise UserError(f"{file} is no table of values separated by {separator!r}: {error}.") from None
    rows = [(number, fields) for number, fields in enumerate(lines, start=1) if fields]
    if len(rows) < 2:
        raise UserError(f"{file} holds no rows: it needs a line of names, then one line an example.")
    names = [name.strip() for name in rows[0][1]]
    if "" in names:
        column = names.index("") + 1
        raise UserError(f"{file}: column {column} has no name. Name it, or delete it (pandas: to_csv(index=False)).")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{file} has more than one column {_listed(twice)}. Give each a name of its own.")
    for number, fields in rows[1:]:
        if len(fields) != len(names):
            raise UserError(f"{file}, row {number}: {len(fields)} values for {len(names)} columns. Fix this row.")
    return names, iter(rows[1:])


def _numbers(
    file: Path, names: Sequence[str], features: Sequence[str], rows: Sequence[tuple[int, list[str]]]
) -> np.ndarray:
    """The values of these columns: float64, N F."""
    places = [names.index(name) for name in features]
    values_NF = np.empty((len(rows), len(features)))
    strange = []
    for row, (number, fields) in enumerate(rows):
        for column, place in enumerate(places):
            try:
                values_NF[row, column] = float(fields[place])
            except ValueError:
                strange.append((number, names[place], fields[place].strip()))
                continue
            if not np.isfinite(values_NF[row, column]):
                strange.append((number, names[place], fields[place].strip()))
    _refuse_missing(file, strange)
    if strange:
        number, name, text = strange[0]
        raise UserError(
            f"{file}, row {number}, column {name!r}: {text!r} is no number{_others(strange)}. "
            f"Write numbers such as 0.5, or leave the column out: dataset.ignore=[{name}]"
        )
    return values_NF


def _refuse_missing(file: Path, values: Sequence[tuple[int, str, str]]) -> None:
    """Of (row, column, text)."""
    missing = [value for value in values if value[2].lower() in MISSING]
    if missing:
        number, name, _ = missing[0]
        raise UserError(
            f"{file}, row {number}, column {name!r}: the value is missing{_others(missing)}. "
            "Fill in what is missing, or delete these rows or columns."
        )


def _listed(names: Sequence[str]) -> str:
    """`a, b, c`, cut after ten."""
    return ", ".join(map(str, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _others(found: Sequence[object]) -> str:
    return f", and {len(found) - 1} more" if len(found) > 1 else ""
