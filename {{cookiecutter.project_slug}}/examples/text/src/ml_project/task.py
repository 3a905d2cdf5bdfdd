"""What is learned: the loss, the metrics, the optimizer. Takes objects, knows no configuration.

Legend: B batch, T tokens of a window, K different tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from .data import NOTHING, Batch


class LanguageModel(pl.LightningModule):
    """Prediction of the next token by cross-entropy.

    Args:
        model: tokens_BT -> logits_BTK.
        context: T; for whoever draws the model.
        make_optimizer: parameters -> optimizer, such as `functools.partial(torch.optim.AdamW, lr=1e-3)`.
        lr_scheduler: `scheduler`, optimizer -> schedule of its learning rate, and what else Lightning's `lr_scheduler`
            may have: `interval` (epoch or step), `monitor` (the metric that ReduceLROnPlateau waits for).
    """

    def __init__(
        self,
        model: nn.Module,
        context: int,
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        lr_scheduler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.example_input_array = torch.zeros(2, context, dtype=torch.long)
        self.make_optimizer = make_optimizer
        self.lr_scheduler = lr_scheduler
        # means over all tokens of an epoch, on all devices, in nats
        self.train_loss = MeanMetric(nan_strategy="disable")  # a NaN is to be seen
        self.val_loss, self.test_loss = self.train_loss.clone(), self.train_loss.clone()
        self.test_losses_BT: list[Tensor] = []

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits, B T K: for each place the scores of the token after it."""
        logits_BTK: Tensor = self.model(tokens_BT)
        return logits_BTK

    def training_step(self, batch: Batch) -> Tensor:
        loss = self._step(batch, self.train_loss)[0]
        if self.trainer.is_last_batch:  # each call of log() takes as long as a small model's forward pass
            self._log("train", self.train_loss)
        return loss

    def validation_step(self, batch: Batch) -> None:
        self._step(batch, self.val_loss)

    def on_validation_epoch_end(self) -> None:
        self._log("val", self.val_loss)

    def test_step(self, batch: Batch) -> None:
        self.test_losses_BT.append(self._step(batch, self.test_loss)[1].cpu())

    def on_test_epoch_end(self) -> None:
        self._log("test", self.test_loss)

    def mean_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Over all tokens of a batch; and the loss of each, B T, NaN after the end of the text. In nats."""
        tokens_BT, targets_BT = batch
        losses_BT = nn.functional.cross_entropy(
            self(tokens_BT).transpose(1, 2), targets_BT, ignore_index=NOTHING, reduction="none"
        )
        is_token_BT = targets_BT != NOTHING
        return losses_BT.sum() / is_token_BT.sum(), losses_BT.detach().masked_fill(~is_token_BT, torch.nan)

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

    def _step(self, batch: Batch, metric: Metric) -> tuple[Tensor, Tensor]:
        """`mean_loss`; counts it."""
        loss, losses_BT = self.mean_loss(batch)
        metric.update(losses_BT[batch[1] != NOTHING])
        return loss, losses_BT

    def _log(self, stage: str, metric: Metric) -> None:
        """The mean over the epoch."""
        self.log(f"{stage}/loss", metric, on_step=False, on_epoch=True)
