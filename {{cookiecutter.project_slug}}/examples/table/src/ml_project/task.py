"""What is learned: the loss, the metrics, the optimizer. Takes objects, knows no configuration.

Legend: B batch, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score

from .data import Batch


class Regressor(pl.LightningModule):
    """Regression by the squared error of the scaled target; the other metrics are in the table's unit.

    Args:
        model: features_BF -> scaled answers_B.
        num_features: F; for whoever draws the model.
        make_optimizer: parameters -> optimizer, such as `functools.partial(torch.optim.AdamW, lr=1e-3)`.
        lr_scheduler: `scheduler`, optimizer -> schedule of its learning rate, and what else Lightning's `lr_scheduler`
            may have: `interval` (epoch or step), `monitor` (the metric that ReduceLROnPlateau waits for).
    """

    def __init__(
        self,
        model: nn.Module,
        num_features: int,
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        lr_scheduler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.example_input_array = torch.zeros(2, num_features)
        self.make_optimizer = make_optimizer
        self.lr_scheduler = lr_scheduler
        self.loss = nn.MSELoss()
        # Over all rows of an epoch, on all devices. R2 is the same in any unit, and exact where numbers are near 0.
        # They share no counts: a resumed epoch has those of each.
        scaled = MetricCollection({"loss": MeanSquaredError(), "r2": R2Score()}, compute_groups=False)
        unscaled = MetricCollection(
            {"mae": MeanAbsoluteError(), "rmse": MeanSquaredError(squared=False)},
            compute_groups=False,
        )
        self.train_scaled, self.train_unscaled = scaled.clone("train/"), unscaled.clone("train/")
        self.val_scaled, self.val_unscaled = scaled.clone("val/"), unscaled.clone("val/")
        self.test_scaled, self.test_unscaled = scaled.clone("test/"), unscaled.clone("test/")
        self.target_mean, self.target_std = 0.0, 1.0  # those of the data
        self.test_targets_B: list[Tensor] = []
        self.test_answers_B: list[Tensor] = []

    def setup(self, stage: str) -> None:
        self.target_mean, self.target_std = self.trainer.datamodule.target_scale  # type: ignore[attr-defined]

    def forward(self, features_BF: Tensor) -> Tensor:
        """Scaled answers, float32, B."""
        answers_B: Tensor = self.model(features_BF)
        return answers_B

    def training_step(self, batch: Batch) -> Tensor:
        loss, _ = self._step(batch, self.train_scaled, self.train_unscaled)
        if self.trainer.is_last_batch:  # each call of log() takes as long as a small model's forward pass
            self._log(self.train_scaled, self.train_unscaled)
        return loss

    def validation_step(self, batch: Batch) -> None:
        self._step(batch, self.val_scaled, self.val_unscaled)

    def on_validation_epoch_end(self) -> None:
        self._log(self.val_scaled, self.val_unscaled)

    def test_step(self, batch: Batch) -> None:
        _, answers_B = self._step(batch, self.test_scaled, self.test_unscaled)
        self.test_targets_B.append(self.unscale(batch[1]).cpu())
        self.test_answers_B.append(answers_B.cpu())

    def on_test_epoch_end(self) -> None:
        self._log(self.test_scaled, self.test_unscaled)

    def unscale(self, scaled_B: Tensor) -> Tensor:
        """In the unit of the table."""
        return scaled_B * self.target_std + self.target_mean

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.make_optimizer is None:
            raise ValueError("this task has no optimizer: it can only be evaluated. Pass make_optimizer.")
        optimizer = self.make_optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        make = self.lr_scheduler["scheduler"]
        if "total_steps" in make.keywords:  # only the trainer knows how many steps there are
            make = partial(make, total_steps=int(self.trainer.estimated_stepping_batches))
        scheduler: Any = {**self.lr_scheduler, "scheduler": make(optimizer)}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def _step(self, batch: Batch, scaled: MetricCollection, unscaled: MetricCollection) -> tuple[Tensor, Tensor]:
        """Loss, and the answers in the table's unit; counts them."""
        features_BF, targets_B = batch
        scaled_B = self(features_BF)
        exact_B = scaled_B.detach().float()  # of bfloat16, where trainer.precision says so
        answers_B = self.unscale(exact_B)
        scaled.update(exact_B, targets_B)
        unscaled.update(answers_B, self.unscale(targets_B))
        loss: Tensor = self.loss(scaled_B, targets_B)
        return loss, answers_B

    def _log(self, *metrics: MetricCollection) -> None:
        """Those over the epoch."""
        for each in metrics:
            self.log_dict(each, on_step=False, on_epoch=True)
