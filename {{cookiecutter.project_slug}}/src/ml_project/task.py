"""What is learned: the loss, the metrics, the optimizer. Takes objects, knows no configuration.

Legend: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
        num_classes: K.
        make_optimizer: parameters -> optimizer, such as `functools.partial(torch.optim.AdamW, lr=1e-3)`.
        make_schedule: optimizer -> schedule of its learning rate, which steps once an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        make_schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = make_optimizer
        self.make_schedule = make_schedule
        self.loss = nn.CrossEntropyLoss()
        # means over all images of an epoch, on all devices
        self.train_loss = MeanMetric(nan_strategy="disable")  # a NaN is to be seen
        self.val_loss, self.test_loss = self.train_loss.clone(), self.train_loss.clone()
        # micro: right images by all images; macro would weigh each class alike
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy, self.test_accuracy = self.train_accuracy.clone(), self.train_accuracy.clone()
        self.sharded = False
        self.test_labels_B: list[Tensor] = []
        self.test_predicted_B: list[Tensor] = []

    def configure_model(self) -> None:
        """Share the parameters out, where the trainer says so (trainer=fsdp)."""
        mesh = self.device_mesh
        if mesh is not None and not self.sharded:
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.model, mesh=mesh["data_parallel"])
            self.sharded = True

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, B K."""
        logits_BK: Tensor = self.model(images_BCHW)
        return logits_BK

    def training_step(self, batch: Batch) -> Tensor:
        return self._step("train", batch, self.train_loss, self.train_accuracy)[0]

    def validation_step(self, batch: Batch) -> None:
        self._step("val", batch, self.val_loss, self.val_accuracy)

    def test_step(self, batch: Batch) -> None:
        _, logits_BK = self._step("test", batch, self.test_loss, self.test_accuracy)
        self.test_labels_B.append(batch[1].cpu())
        self.test_predicted_B.append(logits_BK.argmax(dim=1).cpu())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.make_optimizer is None:
            raise ValueError("this task has no optimizer: it can only be evaluated. Pass make_optimizer.")
        optimizer = self.make_optimizer(self.parameters())
        if self.make_schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_schedule(optimizer)}

    def _step(self, stage: str, batch: Batch, mean_loss: Metric, accuracy: Metric) -> tuple[Tensor, Tensor]:
        """Loss and logits; logs the means over the epoch."""
        images_BCHW, labels_B = batch
        logits_BK = self(images_BCHW)
        loss: Tensor = self.loss(logits_BK, labels_B)
        mean_loss.update(loss.detach(), len(labels_B))
        accuracy.update(logits_BK, labels_B)
        for name, metric in ((f"{stage}/loss", mean_loss), (f"{stage}/accuracy", accuracy)):
            self.log(name, metric, on_step=False, on_epoch=True, prog_bar=True)
        return loss, logits_BK
