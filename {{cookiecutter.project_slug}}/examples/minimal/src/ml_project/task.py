"""What is learned: the loss and the optimizer.

Legend: B batch, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from .data import Batch


class Task(pl.LightningModule):
    """Squared error.

    Args:
        model: features_BF -> answers_B.
        num_features: F; for whoever draws the model.
        make_optimizer: parameters -> optimizer, such as `functools.partial(torch.optim.AdamW, lr=1e-3)`.
    """

    def __init__(
        self,
        model: nn.Module,
        num_features: int,
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        super().__init__()
        self.model, self.make_optimizer = model, make_optimizer
        self.example_input_array = torch.zeros(2, num_features)
        self.loss = nn.MSELoss()

    def forward(self, features_BF: Tensor) -> Tensor:
        answers_B: Tensor = self.model(features_BF)
        return answers_B

    def training_step(self, batch: Batch) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Batch) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Batch) -> None:
        self._step(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())

    def _step(self, batch: Batch, stage: str) -> Tensor:
        features_BF, targets_B = batch
        loss: Tensor = self.loss(self(features_BF), targets_B)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=len(targets_B), sync_dist=True)
        return loss
