"""Made up: a bright disc in noise, 16 x 16 pixels. Legend: N images, H W pixels."""

from __future__ import annotations

import pytorch_lightning as pl
import runengine
import torch
from torch.utils.data import DataLoader, TensorDataset

SIZE = 16


def discs(number: int, seed: int) -> TensorDataset:
    """Images N 1 H W, and masks N H W of 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    centre_N2 = torch.randint(4, SIZE - 4, (number, 2), generator=generator)
    radius_N = torch.randint(2, 5, (number,), generator=generator)
    y_HW, x_HW = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    away_NHW = (y_HW - centre_N2[:, 0, None, None]) ** 2 + (x_HW - centre_N2[:, 1, None, None]) ** 2
    masks_NHW = (away_NHW <= radius_N[:, None, None] ** 2).long()
    return TensorDataset((masks_NHW + torch.randn(masks_NHW.shape, generator=generator))[:, None], masks_NHW)


class Discs(pl.LightningDataModule):
    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.train, self.val, self.test = discs(128, 0), discs(32, 1), discs(32, 2)

    def train_dataloader(self) -> DataLoader:
        return runengine.loader(self.train, self.batch_size, self.trainer, seed=self.seed, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, self.batch_size)
