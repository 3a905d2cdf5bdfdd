"""Write on from a beginning."""

from __future__ import annotations

import runengine
import torch

from .data import encode


def predict(run: runengine.Run, beginning: str, length: int) -> str:
    _, task, _ = runengine.load(run)
    codes_1T = encode(beginning)[None]
    with torch.inference_mode():
        for _ in range(length):
            next_1 = task(codes_1T)[:, -1].argmax(dim=1)
            codes_1T = torch.cat([codes_1T, next_1[:, None]], dim=1)
    return "".join(map(chr, codes_1T[0].tolist()))


def export(run: runengine.Run) -> None:
    _, task, data = runengine.load(run)
    codes_BT = torch.stack([data.val[index][0] for index in range(len(data.val))])
    runengine.save_model(run, task.model, codes_BT, {"first": " ", "count": 128})
