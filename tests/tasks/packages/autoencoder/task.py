"""Lightning's own first example."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class AutoEncoder(pl.LightningModule):
    def __init__(self, num_codes: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, num_codes))
        self.decoder = nn.Sequential(nn.Linear(num_codes, 32), nn.ReLU(), nn.Linear(32, 64))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self.decoder(self.encoder(batch)), batch)
        self.log("loss", loss)
        return loss

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.mse_loss(self.decoder(self.encoder(batch)), batch))

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.encoder(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
