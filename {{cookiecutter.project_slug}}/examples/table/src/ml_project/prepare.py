"""Split a table once into train, val and test: the first stage of `dvc.yaml`.

    python -m ml_project.prepare                                                     # or `make data`
    python -m ml_project.prepare dataset=csv dataset.file=data/raw/houses.csv dataset.target=price

Each split is three files: `<split>_rows.npy` (float64, N C: numbers as they stand, a category as its place in the
list, NaN for what is missing), `<split>_targets.npy` (float64, N, in the table's unit) and `<split>_places.npy`
(int64, N: the row in a spreadsheet). `split.json` records the seed, the counts, what `columns.py` measured on the
training rows, and the SHA-256 of each file.

Legend: N rows, C columns that the model looks at.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import runengine
from runengine import UserError, listed, read_csv

from .columns import find_categories, measure, to_numbers, to_rows

SPLITS = ("train", "val", "test")


def prepare(
    folder: Path,
    file: Path,
    *,
    target: str,
    categories: Collection[str],
    ignore: Collection[str],
    split_seed: int,
    val_fraction: float,
    test_fraction: float,
) -> dict[str, Any]:
    """Write the three splits and `split.json` into `folder`; returns the content of `split.json`.

    Args:
        folder: is replaced as a whole, when all is complete.
        file: CSV with a line of names.
        target: the column to be predicted: numbers.
        categories: columns of numbers that are only names, such as a postcode.
        ignore: columns that are left out, such as the number of a row.
    """
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise UserError(
            f"val_fraction and test_fraction must be > 0, and val_fraction + test_fraction must be < 1, got "
            f"{val_fraction} + {test_fraction}. Leave something to each split, train too."
        )
    table = read_csv(file).map(str.strip)
    for setting, wanted in {"target": [target], "categories": categories, "ignore": ignore}.items():
        for name in wanted:
            _refuse_unknown(file, list(table), f"dataset.{setting}", name)
    names = [name for name in table if name not in {target, *ignore}]
    if not names:
        raise UserError(f"{file} has no column other than {listed([target, *ignore])}: nothing to learn from.")
    targets_N = to_numbers(file, table[target])
    known = find_categories(file, table[names], categories)
    rows_NC = to_rows(file, table, names, known)
    splits = _split(file, len(table), split_seed, {"val": val_fraction, "test": test_fraction})
    train_N = targets_N[splits["train"]]
    if train_N.std() == 0:
        raise UserError(f"{file}: the target {target!r} is {train_N[0]:g} in all training rows: nothing to learn.")

    columns = measure(rows_NC[splits["train"]], names, known)

    record = {
        "split_seed": split_seed,
        "rows": {name: len(chosen) for name, chosen in splits.items()},
        "target": target,
        "target_mean": float(train_N.mean()),
        "target_std": float(train_N.std()),
        **columns,
        "num_features": num_features(columns),
    }
    with runengine.prepared_folder(folder, record) as new:
        for name, chosen in splits.items():
            for path, array in zip(files_of(new, name), (rows_NC, targets_N, table.index.to_numpy()), strict=True):
                np.save(path, array[chosen])
    return record


def files_of(folder: Path, split: str) -> list[Path]:
    """Rows, targets and places of a split."""
    return [folder / f"{split}_{kind}.npy" for kind in ("rows", "targets", "places")]


def num_features(columns: dict[str, Any]) -> int:
    """How many numbers a row becomes: one for a number, one for each category, one where values may be missing."""
    return len(columns["mean"]) + sum(map(len, columns["categories"].values())) + len(columns["missing"])


def diabetes(file: Path) -> None:
    """Write the 442 patients that come with scikit-learn (Efron, Hastie, Johnstone and Tibshirani 2004) as a CSV."""
    from sklearn.datasets import load_diabetes

    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        data = load_diabetes(as_frame=True, scaled=False)
        table = data.frame.astype({"sex": int}).rename(columns={"target": "progression"})
        runengine.atomic_write(file, table.to_csv(index=False, lineterminator="\n"))


def _split(file: Path, num_rows: int, split_seed: int, fractions: dict[str, float]) -> dict[str, np.ndarray]:
    """The rows of each split, sorted."""
    order = np.random.default_rng(split_seed).permutation(num_rows)
    counts = {name: round(fraction * num_rows) for name, fraction in fractions.items()}
    val, test = counts["val"], counts["test"]
    if min(val, test, num_rows - val - test) < 2:
        raise UserError(f"{file} has {num_rows} rows: too few for three splits. Add rows, or change the fractions.")
    parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
    return {name: np.sort(parts[name]) for name in SPLITS}


def _refuse_unknown(file: Path, names: list[str], setting: str, name: str) -> None:
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f"Did you mean {nearest[0]}?" if nearest else f"Set {setting}."
        raise UserError(f"{file} has no column {name!r}: its columns are {listed(names, 10)}. {hint}")


def from_settings(cfg: DictConfig) -> dict[str, Any]:
    """As `conf/prepare.yaml` says; returns the content of `split.json`."""
    if cfg.dataset.from_sklearn:
        diabetes(Path(cfg.dataset.file))
    settings = {key: cfg[key] for key in ("split_seed", "val_fraction", "test_fraction")}
    columns = {key: cfg.dataset[key] for key in ("target", "categories", "ignore")}
    return prepare(Path(cfg.folder), Path(cfg.dataset.file), **columns, **settings)


@runengine.main("prepare")
def main(cfg: DictConfig) -> None:
    record = from_settings(cfg)
    print(f"wrote {cfg.folder}: " + ", ".join(f"{name} {count}" for name, count in record["rows"].items()))
    categories = listed([f"{name} ({len(known)})" for name, known in record["categories"].items()])
    print(f"columns: {len(record['mean'])} of numbers, and of categories: {categories or 'none'}")
    print(f"train on it: {runengine.train_command(HydraConfig.get().runtime.choices['dataset'], cfg.folder)}")


if __name__ == "__main__":
    main()
