"""Split the raw data once into train, val and test: the first stage of `dvc.yaml`.

    python -m ml_project.prepare                            # or `make data`, which skips it when nothing changed
    python -m ml_project.prepare dataset=fashion_mnist       # other data, next to these: conf/dataset/

Each split is three files: `<split>_images.npy` (N C H W; uint8, or float32; of a table N F), `<split>_labels.npy`
(int64, N) and `<split>_rows.npy` (int64, N: the place in the raw data). `split.json` records the seed, the counts,
the names of the classes in the order of their labels, the shape of an example, what a table was standardised with, and
the SHA-256 of each file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import runengine
from runengine import UserError, listed

from .datasets import SPLITS, RawDataset


def prepare(
    folder: Path, dataset: Callable[[], RawDataset], *, split_seed: int, val_fraction: float, test_fraction: float
) -> dict[str, Any]:
    """Write the three splits and `split.json` into `folder`, each class in the same share everywhere.

    Splits that the dataset has already are kept. Shares are those of all rows; where the test split is given, `val` is
    a share of what is left. Returns the content of `split.json`.
    """
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise UserError(
            f"val_fraction and test_fraction must be > 0, and val_fraction + test_fraction must be < 1, got "
            f"{val_fraction} + {test_fraction}. Leave something to each split, train too."
        )
    record: dict[str, Any] = {"split_seed": split_seed}
    prepared = runengine.prepared_folder(folder, record)
    raw = dataset()
    labels, classes = _labels(raw)
    splits = _split(raw, labels, classes, split_seed, {"test": test_fraction, "val": val_fraction})
    images, standardised = _images(raw, splits["train"])

    record |= {
        "rows": {name: len(chosen) for name, chosen in splits.items()},
        "classes": classes,
        "num_classes": len(classes),
        "input_shape": list(images.shape[1:]),
        **standardised,
    }
    with prepared as new:
        for name, chosen in splits.items():
            for file, array in zip(files_of(new, name), (images, labels, np.arange(len(labels))), strict=True):
                _write(file, array, chosen)
    return record


def files_of(folder: Path, split: str) -> list[Path]:
    """Images, labels and rows of a split."""
    return [folder / f"{split}_{kind}.npy" for kind in ("images", "labels", "rows")]


def _labels(raw: RawDataset) -> tuple[np.ndarray, list[str]]:
    """The labels as 0, 1, ... (int64, N), and the names of the classes."""
    if raw.images.ndim != (2 if raw.features else 4) or len(raw.images) != len(raw.labels) or not len(raw.labels):
        wanted, hint = (
            "must give images of the shape N C H W",
            " Grey images without a channel get one by images[:, None].",
        )
        if raw.features:
            wanted, hint = "with features must give rows of the shape N F", ""
        raise UserError(f"a dataset {wanted} and N labels, got {raw.images.shape} and {len(raw.labels)}.{hint}")
    if raw.classes:
        labels, classes = np.asarray(raw.labels), list(raw.classes)
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(f"with {len(classes)} names of classes, labels must be 0 to {len(classes) - 1}.")
    else:
        found, labels = np.unique(raw.labels, return_inverse=True)
        classes = [str(name) for name in found]
    if len(classes) < 2:
        raise UserError(f"all {len(labels)} examples are of the class {classes[0]!r}: at least two classes are needed.")
    return labels.astype(np.int64), classes


def _split(
    raw: RawDataset, labels: np.ndarray, classes: Sequence[str], split_seed: int, fractions: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """The rows of each split, sorted: those that are given, the others drawn with each class in the same share."""
    from sklearn.model_selection import train_test_split

    splits = dict(raw.predefined_splits)
    train = np.setdiff1d(np.arange(len(labels), dtype=np.int64), np.concatenate([[], *splits.values()]))
    drawn = {name: fraction for name, fraction in fractions.items() if name not in splits}
    counts = np.bincount(labels[train], minlength=len(classes))
    if rare := [f"{name!r} ({count})" for name, count in zip(classes, counts, strict=True) if count <= len(drawn)]:
        raise UserError(
            f"too few examples of {listed(rare)}: each class needs {len(drawn) + 1}, "
            f"one for {', '.join(['train', *sorted(drawn)])} each. Add some, or leave these classes out."
        )
    left = 1.0
    for name, fraction in drawn.items():
        try:
            train, splits[name] = train_test_split(
                train, test_size=fraction / left, stratify=labels[train], random_state=split_seed
            )
        except ValueError as error:
            raise UserError(
                f"{len(labels)} examples of {len(classes)} classes cannot be split by {name}_fraction={fraction}: "
                f"{error}. Add examples, or change the fraction."
            ) from None
        left -= fraction
    return {name: np.sort({"train": train, **splits}[name]) for name in SPLITS}


def _images(raw: RawDataset, train: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """The images as they are stored, and what a table was standardised with: mean and spread of its training rows."""
    from sklearn.preprocessing import StandardScaler

    if raw.images.dtype == np.uint8:
        return raw.images, {}
    values, record = raw.images, {}
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, and is refused
        if raw.features and np.isfinite(values).all():
            scaler = StandardScaler().fit(values[train])
            record = {"features": list(raw.features), "mean": scaler.mean_.tolist(), "std": scaler.scale_.tolist()}
            values = scaler.transform(values)
        stored = values.astype(np.float32)
    if not np.isfinite(stored).all():
        raise UserError("the data hold values that are no numbers, or too large for float32. Fix them in the raw data.")
    return stored, record


def _write(file: Path, array: np.ndarray, chosen: np.ndarray) -> None:
    """These rows of the array, one by one: together they may be more than memory holds."""
    written = np.lib.format.open_memmap(file, "w+", array.dtype, (len(chosen), *array.shape[1:]))
    for place, row in enumerate(chosen):
        written[place] = array[row]
    written.flush()


@runengine.main("prepare")
def main(cfg: DictConfig) -> None:
    dataset: Callable[[], RawDataset] = hydra.utils.instantiate(cfg.dataset, _partial_=True, _convert_="all")
    fractions = {"val_fraction": cfg.val_fraction, "test_fraction": cfg.test_fraction}
    # the dataset is called in prepare(), which does not change what it raises
    record = prepare(Path(cfg.folder), dataset, split_seed=cfg.split_seed, **fractions)
    print(f"wrote {cfg.folder}: " + ", ".join(f"{name} {count}" for name, count in record["rows"].items()))
    command = runengine.train_command(HydraConfig.get().runtime.choices["dataset"], cfg.folder)
    if "features" in record and not runengine.compose("train").model._target_.endswith(".MLP"):
        command += " model=mlp"  # a row has no neighbouring pixels
    print(f"train on it: {command}")


if __name__ == "__main__":
    main()
