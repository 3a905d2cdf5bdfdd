"""Pixel by pixel. Legend: B batch, H W pixels."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.segmentation import DiceScore


class Segmenter(pl.LightningModule):
    def __init__(self, channels: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.model = nn.Sequential(
            nn.Conv2d(1, channels, 5, padding=2), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, 2, 3, padding=1),
        )  # fmt: skip
        self.dice = nn.ModuleDict(
            {f"{stage}_dice": DiceScore(2, include_background=False, input_format="index") for stage in ("val", "test")}
        )

    def forward(self, images_B1HW: Tensor) -> Tensor:
        return self.model(images_B1HW)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        images_B1HW, masks_BHW = batch
        loss = nn.functional.cross_entropy(self(images_B1HW), masks_BHW)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._measure(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._measure(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)

    def _measure(self, batch: list[Tensor], stage: str) -> None:
        dice = self.dice[f"{stage}_dice"]
        dice(self(batch[0]).argmax(dim=1), batch[1])
        self.log(f"{stage}/dice", dice)
