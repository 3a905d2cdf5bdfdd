"""New points of the ring."""

from __future__ import annotations

import runengine
import torch
from torch import Tensor


def predict(run: runengine.Run, number: int) -> Tensor:
    _, task, _ = runengine.load(run)
    torch.manual_seed(0)
    with torch.inference_mode():
        return task.sample(number)
