"""The data: split once, by a seed, into parts that share nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from conftest import prepare_as_configured

from ml_project.data import ImageData
from ml_project.prepare import files_of

SPLITS = ("train", "val", "test")


def test_every_example_is_in_exactly_one_split(processed: Path) -> None:
    rows = np.concatenate([np.load(files_of(processed, name)[-1]) for name in SPLITS])
    assert sorted(rows) == list(range(len(rows)))


def test_the_same_seed_makes_the_same_split(processed: Path, tmp_path: Path) -> None:
    assert prepare_as_configured(tmp_path / "again") == json.loads((processed / "split.json").read_text())


def test_batches_have_the_configured_shape(data: ImageData) -> None:
    images, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert images.shape == (data.batch_size, *data.input_shape)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert labels.shape == (data.batch_size,)
    assert 0 <= labels.min() <= labels.max() < data.num_classes


def test_the_order_changes_with_the_epoch_and_comes_back(data: ImageData) -> None:
    sampler = data.train_dataloader().sampler
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
