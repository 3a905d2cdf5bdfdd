"""What scikit-learn says of its own data sets, as characters."""

from __future__ import annotations

import pytorch_lightning as pl
import runengine
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def encode(text: str) -> Tensor:
    return torch.tensor([min(ord(letter), 127) for letter in text], dtype=torch.int64)


class Pieces(Dataset):
    """Characters T and the ones that follow T, both int64."""

    def __init__(self, text: str, length: int) -> None:
        self.codes, self.length = encode(text), length

    def __len__(self) -> int:
        return (len(self.codes) - 1) // self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self.length
        return self.codes[start : start + self.length], self.codes[start + 1 : start + self.length + 1]


class Characters(pl.LightningDataModule):
    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.train = Pieces(load_breast_cancer().DESCR + load_iris().DESCR, length)
        self.val, self.test = Pieces(load_wine().DESCR, length), Pieces(load_diabetes().DESCR, length)

    def train_dataloader(self) -> DataLoader:
        return runengine.loader(self.train, self.batch_size, self.trainer, seed=self.seed, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, self.batch_size)
