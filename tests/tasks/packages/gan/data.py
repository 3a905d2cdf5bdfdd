"""Made up: points on a noisy ring."""

from __future__ import annotations

import pytorch_lightning as pl
import runengine
import torch
from torch import Tensor
from torch.utils.data import DataLoader


def ring(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle_N = torch.rand(number, generator=generator) * 2 * torch.pi
    points_N2 = torch.stack([angle_N.cos(), angle_N.sin()], dim=1)
    return points_N2 + 0.05 * torch.randn(number, 2, generator=generator)


class Ring(pl.LightningDataModule):
    def __init__(self, batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        self.train, self.val, self.test = ring(512, 0), ring(128, 1), ring(128, 2)

    def train_dataloader(self) -> DataLoader:
        return runengine.loader(self.train, self.batch_size, self.trainer, seed=self.seed, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, len(self.val))

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, len(self.test))
