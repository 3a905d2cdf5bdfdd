"""A small network with one output."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection


class Regressor(pl.LightningModule):
    def __init__(self, hidden: int, dropout: float, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.model = nn.Sequential(nn.Linear(10, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1))
        metrics = MetricCollection({"mse": MeanSquaredError(), "mae": MeanAbsoluteError()})
        self.train_metrics, self.val_metrics = metrics.clone(prefix="train/"), metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.example_input_array = torch.zeros(2, 10)

    def forward(self, rows_BF: Tensor) -> Tensor:
        return self.model(rows_BF).squeeze(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        rows_BF, targets_B = batch
        answers_B = self(rows_BF)
        self.train_metrics(answers_B, targets_B)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
        return nn.functional.mse_loss(answers_B, targets_B)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.val_metrics(self(batch[0]), batch[1])
        self.log_dict(self.val_metrics)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.test_metrics(self(batch[0]), batch[1])
        self.log_dict(self.test_metrics)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
