"""Make the data and split them once: the first stage of `dvc.yaml`.

    python -m ml_project.prepare            # or `make data`, which skips it when nothing changed

PUT YOUR OWN INTO `read`. Each split is one file, `<split>.npy` (float32, N F + 1: the features,
then what is to be predicted); `split.json` says how many rows it has, and the SHA-256 of each file.

Legend: N rows, F features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

import runengine

SPLITS = ("train", "val", "test")


def read(cfg: DictConfig) -> np.ndarray:
    """What is to be learned from, float32, N F + 1: the features, then what is to be predicted."""
    return make_up(cfg.num_rows, cfg.noise, cfg.split_seed)


def make_up(num_rows: int, noise: float, seed: int) -> np.ndarray:
    """Three features and their weighted sum, with noise: float32, N 4."""
    random = np.random.default_rng(seed)
    features_NF = random.normal(size=(num_rows, 3))
    targets_N = features_NF @ [1.0, -2.0, 0.5] + 3.0 + noise * random.normal(size=num_rows)
    return np.column_stack([features_NF, targets_N]).astype(np.float32)


def prepare(folder: Path, rows: np.ndarray) -> dict[str, Any]:
    """Seven tenths of the rows for training, the others for the two other splits; returns what `split.json` says."""
    first, second = int(0.7 * len(rows)), int(0.85 * len(rows))
    if first < 1 or second == first or second == len(rows):
        raise runengine.UserError(f"{len(rows)} rows are too few for three splits. Make more: num_rows=1000")
    parts = dict(zip(SPLITS, np.split(rows, [first, second]), strict=True))
    record: dict[str, Any] = {
        "rows": {name: len(part) for name, part in parts.items()},
        "num_features": rows.shape[1] - 1,
    }
    with runengine.prepared_folder(folder, record) as new:
        for name, part in parts.items():
            np.save(new / f"{name}.npy", part)
    return record


@runengine.main("prepare")
def main(cfg: DictConfig) -> None:
    record = prepare(Path(cfg.folder), read(cfg))
    print(f"wrote {cfg.folder}: " + ", ".join(f"{name} {count}" for name, count in record["rows"].items()))


if __name__ == "__main__":
    main()
