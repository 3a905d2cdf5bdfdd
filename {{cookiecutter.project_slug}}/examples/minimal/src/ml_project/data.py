"""The data as batches of tensors.

Legend: N rows of a split, B of a batch, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import runengine

Batch = tuple[Tensor, Tensor]  # features_BF, targets_B; float32


@dataclass(eq=False)
class Data(pl.LightningDataModule):
    """Reads what `prepare` wrote."""

    folder: Path  # holds a file for each split, and split.json
    num_features: int  # F
    batch_size: int  # rows a step, over all devices together; each takes its share
    seed: int  # of the order of the training rows, together with the epoch

    def __post_init__(self) -> None:
        super().__init__()
        self.folder = Path(self.folder)

    def setup(self, stage: str) -> None:
        """A missing or damaged file ends it here, before anything is written."""
        for name in ("train", "val") if stage in ("fit", "validate") else ("test",):
            self.split(name)

    def split(self, name: str) -> TensorDataset:
        """The split `train`, `val` or `test`."""
        file = self.folder / f"{name}.npy"
        runengine.read_prepared(self.folder, [file], num_features=self.num_features)
        rows_N = runengine.StoredArray(file).rows
        return TensorDataset(rows_N[:, :-1], rows_N[:, -1])

    def train_dataloader(self) -> DataLoader[Batch]:
        return runengine.loader(self.split("train"), self.batch_size, self.trainer, seed=self.seed, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return runengine.loader(self.split("val"), self.batch_size, self.trainer, seed=self.seed, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        return runengine.loader(self.split("test"), self.batch_size, self.trainer, seed=self.seed, shuffle=False)
