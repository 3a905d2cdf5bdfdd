"""The cultivars of new wines, by the average of the weights."""

from __future__ import annotations

import runengine
import torch
from torch import Tensor


def predict(run: runengine.Run, wines_NF: Tensor) -> Tensor:
    _, task, _ = runengine.load(run)
    callbacks = torch.load(run.last, weights_only=True)["callbacks"]
    average = {name.removeprefix("module."): value for name, value in callbacks["EMA"]["average"].items()}
    average.pop("n_averaged")
    task.model.load_state_dict(average)
    with torch.inference_mode():
        return task(wines_NF).argmax(dim=1)
