"""Split the raw data once into train, val and test: the first stage of `dvc.yaml`.

    python -m ml_project.prepare            # or `make data`, which skips it when nothing changed

Each split is a file `<split>.npz` with `images` (float32, N C H W, in 0..1), `labels` (int64, N) and
`rows` (int64, N: the place in the raw data). `split.json` records the seed, the counts and the SHA-256 of each file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from .config import check
from .errors import UserError, one_sentence


def load_raw() -> tuple[np.ndarray, np.ndarray]:
    """The raw data: images (float32, N C H W, in 0..1) and labels (int64, N). Put your own here."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images_NHW = digits.images.astype(np.float32) / 16  # the pixels count from 0 to 16
    return images_NHW[:, None], digits.target.astype(np.int64)


def prepare(folder: Path, *, split_seed: int, val_fraction: float, test_fraction: float) -> dict[str, int]:
    """Write the three splits and `split.json` into `folder`, each class in the same share everywhere.

    Returns:
        The number of rows of each split.

    Raises:
        UserError: nothing would be left to train on.
    """
    from sklearn.model_selection import train_test_split

    if val_fraction + test_fraction >= 1:
        raise UserError(
            f"val_fraction + test_fraction must be < 1, got {val_fraction} + {test_fraction}: "
            "nothing is left to train on. Make one of them smaller."
        )
    images, labels = load_raw()
    rows = np.arange(len(labels), dtype=np.int64)
    rest, test = train_test_split(rows, test_size=test_fraction, stratify=labels, random_state=split_seed)
    train, val = train_test_split(
        rest, test_size=val_fraction / (1 - test_fraction), stratify=labels[rest], random_state=split_seed
    )

    splits = {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".prepare-") as temporary:
        new = Path(temporary) / "new"  # complete before it takes the place of the old one
        new.mkdir()
        for name, chosen in splits.items():
            np.savez(new / f"{name}.npz", images=images[chosen], labels=labels[chosen], rows=chosen)
        record = {
            "split_seed": split_seed,
            "rows": {name: len(chosen) for name, chosen in splits.items()},
            "sha256": {name: sha256(new / f"{name}.npz") for name in splits},
        }
        (new / "split.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.move(folder, Path(temporary) / "old")
        new.replace(folder)
    return {name: len(chosen) for name, chosen in splits.items()}


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
def _prepare(cfg: DictConfig) -> None:
    with one_sentence("prepare"):
        check(cfg, "prepare", HydraConfig.get().overrides.task)
        rows = prepare(
            Path(cfg.folder),
            split_seed=cfg.split_seed,
            val_fraction=cfg.val_fraction,
            test_fraction=cfg.test_fraction,
        )
    print(f"wrote {cfg.folder}: " + ", ".join(f"{name} {count}" for name, count in rows.items()))


if __name__ == "__main__":
    with one_sentence("prepare"):  # once more, for what Hydra finds before it calls _prepare
        _prepare()
