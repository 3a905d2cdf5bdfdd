"""178 wines of scikit-learn, of three cultivars."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_wine
from sklearn.preprocessing import scale
from torch.utils.data import DataLoader, TensorDataset, random_split


class Wine(pl.LightningDataModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        wine = load_wine()
        wines = TensorDataset(torch.tensor(scale(wine.data)).float(), torch.tensor(wine.target))
        self.train, self.val, self.test = random_split(wines, [118, 30, 30], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, self.batch_size)
