"""Which character comes next? Legend: B batch, T time, V characters, D width."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class Model(nn.Module):
    """codes_BT -> logits_BTV; each position sees the four before it."""

    def __init__(self, num_characters: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_characters, width)
        self.pad, self.mix = nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(width, width, 5)
        self.out = nn.Linear(width, num_characters)

    def forward(self, codes_BT: Tensor) -> Tensor:
        mixed_BDT = self.mix(self.pad(self.embed(codes_BT).transpose(1, 2)))
        return self.out(torch.relu(mixed_BDT).transpose(1, 2))


class LanguageModel(pl.LightningModule):
    def __init__(self, num_characters: int, width: int, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = Model(num_characters, width)

    def forward(self, codes_BT: Tensor) -> Tensor:
        return self.model(codes_BT)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self._loss(batch, "train_loss")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._loss(batch, "val_loss")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._loss(batch, "test_loss")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

    def _loss(self, batch: list[Tensor], name: str) -> Tensor:
        codes_BT, next_BT = batch
        loss = nn.functional.cross_entropy(self(codes_BT).flatten(0, 1), next_BT.flatten())
        self.log(name, loss, on_step=False, on_epoch=True)
        return loss
