"""The data as batches of tensors.

Legend: N rows of a split, B of a batch, C columns of the table, F features: what a row is for the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import runengine

from .prepare import files_of

Batch = tuple[Tensor, Tensor]  # features_BF float32, scaled targets_B float32
NUMBER, MISSING = -1.0, -2.0  # in the place of a category's code


class Encode(nn.Module):
    """Rows as the table has them become features: numbers standardised, a 0 or 1 for each category.

    Where values were missing in the training, one more feature says so; the number is then the mean. A number that is
    missing in another column is the mean, and a category is none of those that are known.

    Args:
        record: what `split.json`, or a run's `data.json`, says of the columns.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__()
        features: list[tuple[int, float, float, float]] = []  # column, code, mean, std
        sizes = [len(record["categories"].get(name, [])) for name in record["columns"]]
        for column, (name, size) in enumerate(zip(record["columns"], sizes, strict=True)):
            if size:
                features += [(column, code, 0, 1) for code in range(size)]
            else:
                features.append((column, NUMBER, record["mean"][name], record["std"][name]))
            features += [(column, MISSING, 0, 1)] if name in record["missing"] else []
        columns, *rest = zip(*features, strict=True)
        self.column_F, self.size_C = nn.Buffer(torch.tensor(columns)), nn.Buffer(torch.tensor(sizes))
        self.code_F, self.mean_F, self.std_F = (nn.Buffer(torch.tensor(each, dtype=torch.float64)) for each in rest)

    def forward(self, rows_NC: Tensor) -> Tensor:
        """Float64, N C -> float32, N F; NaN for a row with a category that is none of the list: it gets no answer."""
        outside_NC = (rows_NC < 0) | (rows_NC >= self.size_C) | (rows_NC != rows_NC.floor())
        unknown_N1 = (outside_NC & (self.size_C > 0) & ~rows_NC.isnan()).any(dim=1, keepdim=True)
        values_NF = rows_NC[:, self.column_F]
        numbers_NF = torch.nan_to_num((values_NF - self.mean_F) / self.std_F)
        missing_NF, same_NF = values_NF.isnan().double(), (values_NF == self.code_F).double()
        others_NF = torch.where(self.code_F == MISSING, missing_NF, same_NF)
        features_NF = torch.where(self.code_F == NUMBER, numbers_NF, others_NF).float()
        return features_NF.masked_fill(unknown_N1, torch.nan)


@dataclass(eq=False)
class TableData(pl.LightningDataModule):
    """Reads what `prepare` wrote."""

    folder: Path  # holds the arrays of the three splits and split.json
    num_features: int  # F
    batch_size: int  # rows a step, over all devices together; each takes its share
    seed: int  # of the order of the training rows, together with the epoch

    def __post_init__(self) -> None:
        super().__init__()
        self.folder = Path(self.folder)
        self.splits: dict[str, TensorDataset] = {}
        self.record: dict[str, Any] = {}

    @property
    def target_scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the target in the training rows."""
        return self.record["target_mean"], self.record["target_std"]

    def setup(self, stage: str) -> None:
        """Read the splits that this stage needs, each once."""
        for name in ("train", "val") if stage in ("fit", "validate") else ("test",):
            self.split(name)

    def split(self, name: str) -> TensorDataset:
        """The split `train`, `val` or `test`: features_NF and scaled targets_N."""
        if name not in self.splits:
            self.splits[name] = self._read(name)
        return self.splits[name]

    def train_dataloader(self) -> DataLoader[Batch]:
        return runengine.loader(self.split("train"), self.batch_size, self.trainer, seed=self.seed, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return runengine.loader(self.split("val"), self.batch_size, self.trainer, seed=self.seed, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        return runengine.loader(self.split("test"), self.batch_size, self.trainer, seed=self.seed, shuffle=False)

    def _read(self, name: str) -> TensorDataset:
        files = files_of(self.folder, name)[:2]
        self.record = runengine.read_prepared(self.folder, files, num_features=self.num_features)
        rows_NC, targets_N = (runengine.StoredArray(file).rows for file in files)
        mean, std = self.target_scale
        return TensorDataset(Encode(self.record)(rows_NC), ((targets_N - mean) / std).float())
