"""The progress of new patients, in the unit of the table."""

from __future__ import annotations

import runengine
import torch
from torch import Tensor, nn


class Unscaled(nn.Module):
    """rows_NF -> targets_N as the table has them."""

    def __init__(self, task: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.model, self.mean, self.std = task.model, mean, std

    def forward(self, rows_NF: Tensor) -> Tensor:
        return self.model(rows_NF).squeeze(1) * self.std + self.mean


def predict(run: runengine.Run, rows_NF: Tensor) -> Tensor:
    _, task, data = runengine.load(run)
    with torch.inference_mode():
        return Unscaled(task, data.mean, data.std)(rows_NF)


def export(run: runengine.Run) -> None:
    _, task, data = runengine.load(run)
    rows_NF = torch.stack([rows_F for rows_F, _ in data.val])
    runengine.save_model(run, Unscaled(task, data.mean, data.std), rows_NF, {"unit": "progress"})
