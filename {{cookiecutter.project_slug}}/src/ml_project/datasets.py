"""Where the raw data come from: a function gives `RawDataset`, and a file in `conf/dataset/` names it.

    python -m ml_project.prepare dataset=fashion_mnist

PUT YOUR OWN HERE: a function that returns `RawDataset(images, labels)`, and `conf/dataset/<name>.yaml` with its
`_target_` and its settings. `docs/bring-your-own-data.md` shows it step by step. Folders of images: `images.py`; CSV
files: `tables.py`.

Legend: N rows, C channels, H W pixels.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from runengine import UserError, download

SPLITS = ("train", "val", "test")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True)
class RawDataset:
    """Raw data, one row an example.

    Args:
        images: N C H W; uint8, or float32 in 0..1. They may be a `np.memmap`, larger than memory. Of a table: N F.
        labels: N; words or numbers.
        classes: their names, where the labels are 0, 1, ...; without them each different label is a class, sorted.
        predefined_splits: the rows of the splits that the authors made, such as `{"test": rows}`; the others are drawn.
        features: the names of a table's columns, which are standardised.
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
    test = len(images[0]) + np.arange(len(images[1]))
    return RawDataset(np.concatenate(images)[:, None], np.concatenate(labels), FASHION, {"test": test})


def _read_idx(file: Path) -> np.ndarray:
    """The format of MNIST: two zero bytes, the type (8: uint8), the number of dimensions, each size, the values."""
    try:
        content = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8)
        *kind, num_dimensions = content[:4].tolist()
        if kind != [0, 0, 8]:
            raise ValueError
        first = 4 + 4 * num_dimensions
        return content[first:].reshape(content[4:first].view(">u4"))
    except (OSError, EOFError, zlib.error, ValueError):
        raise UserError(f"{file} is not a file of the kind of MNIST's: gzip, and in it IDX of bytes.") from None


def others(count: int) -> str:
    """What follows the first of so many mistakes."""
    return f", and {count - 1} more" if count > 1 else ""
