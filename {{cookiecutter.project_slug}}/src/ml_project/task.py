"""What is learned: the loss, the metrics, the optimizer. Takes objects, knows no configuration.

Legend: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from .data import Batch


class ImageClassifier(pl.LightningModule):
    """Image classification by cross-entropy.

    Args:
        model: images_BCHW -> logits_BK.
        input_shape: of an example, such as C, H, W; for whoever draws the model.
        num_classes: K.
        make_optimizer: parameters -> optimizer, such as `functools.partial(torch.optim.AdamW, lr=1e-3)`.
        lr_scheduler: `scheduler`, optimizer -> schedule of its learning rate, and what else Lightning's `lr_scheduler`
            may have: `interval` (epoch or step), `monitor` (the metric that ReduceLROnPlateau waits for).
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: Sequence[int],
        num_classes: int,
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        lr_scheduler: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.example_input_array = torch.zeros(2, *input_shape)
        self.make_optimizer = make_optimizer
        self.lr_scheduler = lr_scheduler
        self.loss = nn.CrossEntropyLoss()
        # means over all images of an epoch, on all devices
        self.train_loss = MeanMetric(nan_strategy="disable")  # a NaN is to be seen
        self.val_loss, self.test_loss = self.train_loss.clone(), self.train_loss.clone()
        # micro: right images by all images; macro would weigh each class alike
        self.train_accuracy = MulticlassAccuracy(
            num_classes,
            average="micro",
            validate_args=False,  # its checks wait for the GPU in each step
        )
        self.val_accuracy, self.test_accuracy = self.train_accuracy.clone(), self.train_accuracy.clone()
        self.test_labels_B: list[Tensor] = []
        self.test_logits_BK: list[Tensor] = []

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, B K."""
        logits_BK: Tensor = self.model(images_BCHW)
        return logits_BK

    def training_step(self, batch: Batch) -> Tensor:
        loss, _ = self._step(batch, self.train_loss, self.train_accuracy)
        if self.trainer.is_last_batch:  # each call of log() takes as long as a small model's forward pass
            self._log("train", self.train_loss, self.train_accuracy)
        return loss

    def validation_step(self, batch: Batch) -> None:
        self._step(batch, self.val_loss, self.val_accuracy)

    def on_validation_epoch_end(self) -> None:
        self._log("val", self.val_loss, self.val_accuracy)

    def test_step(self, batch: Batch) -> None:
        _, logits_BK = self._step(batch, self.test_loss, self.test_accuracy)
        self.test_labels_B.append(batch[1].cpu())
        self.test_logits_BK.append(logits_BK.float().cpu())

    def on_test_epoch_end(self) -> None:
        self._log("test", self.test_loss, self.test_accuracy)

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

    def _step(self, batch: Batch, mean_loss: Metric, accuracy: Metric) -> tuple[Tensor, Tensor]:
        """Loss and logits; counts them."""
        images_BCHW, labels_B = batch
        logits_BK = self(images_BCHW)
        loss: Tensor = self.loss(logits_BK, labels_B)
        mean_loss.update(loss.detach().expand(len(labels_B)))  # torchmetrics 1.9 ignores weights (its issue 3434)
        accuracy.update(logits_BK, labels_B)
        return loss, logits_BK

    def _log(self, stage: str, mean_loss: Metric, accuracy: Metric) -> None:
        """The means over the epoch."""
        for name, metric in ((f"{stage}/loss", mean_loss), (f"{stage}/accuracy", accuracy)):
            self.log(name, metric, on_step=False, on_epoch=True)
