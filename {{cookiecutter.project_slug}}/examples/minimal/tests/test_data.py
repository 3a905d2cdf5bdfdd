"""The data: split into parts that share nothing, and given out as the model expects them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from ml_project.data import Data
from ml_project.prepare import SPLITS


def test_every_row_is_in_exactly_one_split(processed: Path) -> None:
    rows = np.concatenate([np.load(processed / f"{name}.npy") for name in SPLITS])
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert len(rows) == sum(json.loads((processed / "split.json").read_text())["rows"].values())


def test_batches_have_the_configured_shape(data: Data) -> None:
    features_BF, targets_B = next(iter(data.train_dataloader()))
    assert features_BF.shape == (data.batch_size, data.num_features)
    assert targets_B.shape == (data.batch_size,)
    assert features_BF.dtype == targets_B.dtype == torch.float32
