"""Masks of new images."""

from __future__ import annotations

import runengine
import torch
from torch import Tensor, nn


class Probability(nn.Module):
    """images_B1HW -> how probable it is that each pixel is of the disc, B H W."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.model = task.model

    def forward(self, images_B1HW: Tensor) -> Tensor:
        return self.model(images_B1HW).softmax(dim=1)[:, 1]


def predict(run: runengine.Run, images_B1HW: Tensor) -> Tensor:
    _, task, _ = runengine.load(run)
    with torch.inference_mode():
        return Probability(task)(images_B1HW) > 0.5


def export(run: runengine.Run) -> None:
    _, task, data = runengine.load(run)
    runengine.save_model(run, Probability(task), data.val.tensors[0], {})
