"""Made up: the same law, at places near to those of the training and far from them."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


def law(number: int, centre: float, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x_N1 = centre + torch.randn(number, 1, generator=generator)
    return TensorDataset(x_N1, x_N1.sin() + 0.1 * torch.randn(number, 1, generator=generator))


class Shifts(pl.LightningDataModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        self.train, self.near, self.far, self.test = law(256, 0, 0), law(64, 0, 1), law(64, 2, 2), law(64, 1, 3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(part, self.batch_size) for part in (self.near, self.far)]

    def test_dataloader(self) -> list[DataLoader]:
        return [DataLoader(part, self.batch_size) for part in (self.near, self.test)]
