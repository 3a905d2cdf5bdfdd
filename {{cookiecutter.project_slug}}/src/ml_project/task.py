"""What is learned: the loss, the metrics, the optimizer. Takes objects, knows no configuration.

Legend: B batch, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from .data import Batch


class ImageClassifier(pl.LightningModule):
    """Image classification by cross-entropy.

    Args:
        model: images_BCHW -> logits_BK.
        num_classes: K.
        make_optimizer: parameters -> optimizer, such as `functools.partial(torch.optim.AdamW, lr=1e-3)`.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = make_optimizer
        self.loss = nn.CrossEntropyLoss()
        # micro: right images by all images; macro would weigh each class alike
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = self.train_accuracy.clone()
        self.test_accuracy = self.train_accuracy.clone()
        self.test_labels_B: list[Tensor] = []
        self.test_predicted_B: list[Tensor] = []

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, B K."""
        logits_BK: Tensor = self.model(images_BCHW)
        return logits_BK

    def training_step(self, batch: Batch) -> Tensor:
        return self._step("train", batch, self.train_accuracy)[0]

    def validation_step(self, batch: Batch) -> None:
        self._step("val", batch, self.val_accuracy)

    def test_step(self, batch: Batch) -> None:
        _, logits_BK = self._step("test", batch, self.test_accuracy)
        self.test_labels_B.append(batch[1].cpu())
        self.test_predicted_B.append(logits_BK.argmax(dim=1).cpu())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.make_optimizer is None:
            raise ValueError("this task has no optimizer: it can only be evaluated. Pass make_optimizer.")
        return self.make_optimizer(self.parameters())

    def _step(self, stage: str, batch: Batch, accuracy: Metric) -> tuple[Tensor, Tensor]:
        """Loss and logits; logs the means over the epoch, weighted by the images of each batch."""
        images_BCHW, labels_B = batch
        logits_BK = self(images_BCHW)
        loss: Tensor = self.loss(logits_BK, labels_B)
        accuracy(logits_BK, labels_B)
        for name, value in ((f"{stage}/loss", loss), (f"{stage}/accuracy", accuracy)):
            self.log(name, value, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels_B))
        return loss, logits_BK
