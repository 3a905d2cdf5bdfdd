"""Made up: what a sensor sends, one value after the other. Legend: T values that are known before the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

T = 8


class Sent(IterableDataset):
    """Windows T and the value that follows, until the sensor falls silent."""

    def __init__(self, first: int, silent_after: int) -> None:
        self.first, self.silent_after = first, silent_after

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(self.first, self.first + self.silent_after):
            steps = torch.arange(start, start + T + 1)
            values = (0.3 * steps).sin() + 0.5 * (0.7 * steps).sin()
            yield values[:T], values[T:]


class Sensor(pl.LightningDataModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Sent(0, 150), self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Sent(1000, 40), self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(Sent(2000, 40), self.batch_size)
