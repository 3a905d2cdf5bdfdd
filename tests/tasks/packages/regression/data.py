"""442 patients of scikit-learn: ten numbers each, and the progress of the disease after a year."""

from __future__ import annotations

import pytorch_lightning as pl
import runengine
import torch
from sklearn.datasets import load_diabetes
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split


class Diabetes(pl.LightningDataModule):
    """Rows N 10 and targets N, scaled by the mean and deviation of the training rows."""

    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        rows, targets = load_diabetes(return_X_y=True)
        rows_NF, targets_N = torch.tensor(rows).float() * 20, torch.tensor(targets).float()
        parts = random_split(range(len(rows_NF)), [0.7, 0.15, 0.15], generator=torch.Generator().manual_seed(0))
        train = list(parts[0])
        self.mean, self.std = float(targets_N[train].mean()), float(targets_N[train].std())
        dataset = TensorDataset(rows_NF, (targets_N - self.mean) / self.std)
        self.train, self.val, self.test = (Subset(dataset, list(part)) for part in parts)

    def train_dataloader(self) -> DataLoader:
        return runengine.loader(self.train, self.batch_size, self.trainer, seed=self.seed, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, self.batch_size)
