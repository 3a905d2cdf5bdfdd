"""The next value of a sensor."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class Forecast(pl.LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, values_BT: Tensor) -> Tensor:
        return self.model(values_BT)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self._loss(batch, "train_loss")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._loss(batch, "val_loss")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._loss(batch, "test_loss")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def _loss(self, batch: list[Tensor], name: str) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log(name, loss, on_step=False, on_epoch=True)
        return loss
