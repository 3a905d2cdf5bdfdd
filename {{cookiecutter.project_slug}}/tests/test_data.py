"""The data: split once, disjoint, checksummed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ml_project.config import compose
from ml_project.data import ImageData
from ml_project.errors import UserError
from ml_project.prepare import load_raw, prepare
from ml_project.train import build_data

SPLITS = ("train", "val", "test")
FRACTIONS = {"val_fraction": 0.15, "test_fraction": 0.2}


@pytest.fixture
def data() -> ImageData:
    return build_data(compose("train", ["data.batch_size=32"]))


def rows(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.load(folder / f"{name}.npz")["rows"] for name in SPLITS}


def test_every_image_is_in_exactly_one_split(processed: Path) -> None:
    together = np.concatenate(list(rows(processed).values()))
    assert sorted(together) == list(range(len(load_raw()[1])))


def test_splits_have_the_shares_asked_for(processed: Path) -> None:
    counts = {name: len(chosen) for name, chosen in rows(processed).items()}
    total = sum(counts.values())
    assert counts["val"] == pytest.approx(0.15 * total, abs=1)
    assert counts["test"] == pytest.approx(0.2 * total, abs=1)


def test_every_class_has_the_same_share_everywhere(processed: Path) -> None:
    shares = []
    for name in SPLITS:
        labels = np.load(processed / f"{name}.npz")["labels"]
        shares.append(np.bincount(labels) / len(labels))
    np.testing.assert_allclose(shares, [shares[0]] * len(SPLITS), atol=0.01)


def test_the_seed_alone_decides_the_split(processed: Path, tmp_path: Path) -> None:
    for seed, same in ((0, True), (1, False)):
        prepare(tmp_path / str(seed), split_seed=seed, **FRACTIONS)
        files = [(tmp_path / str(seed) / f"{name}.npz").read_bytes() for name in SPLITS]
        assert (files == [(processed / f"{name}.npz").read_bytes() for name in SPLITS]) is same


def test_batches_have_the_configured_shape_and_range(data: ImageData) -> None:
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, *data.image_shape)
    assert labels.shape == (32,)
    assert images.min() >= 0
    assert images.max() <= 1


def test_the_order_changes_with_the_epoch_and_comes_back(data: ImageData) -> None:
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        orders.append(list(loader.sampler))
    assert orders[0] == orders[2] != orders[1]


def test_a_temporary_folder_that_would_hang_the_loaders_is_refused(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/{'x' * 80}")
    data.train_dataloader()
    data.num_workers = 1
    with pytest.raises(
        UserError, match=r"^the temporary folder's name is too long for data.num_workers=1: \d+ letters of"
    ):
        data.train_dataloader()


def test_missing_data_says_what_to_run(data: ImageData) -> None:
    (data.folder / "train.npz").unlink()
    with pytest.raises(UserError, match=r"^data/processed/train.npz does not exist. Run: make data$"):
        data.split("train")


def test_a_damaged_file_is_found(data: ImageData) -> None:
    with (data.folder / "val.npz").open("r+b") as file:
        file.write(b"x")
    sentence = "data/processed/val.npz is damaged: its SHA-256 is not the one in split.json. Run: make data"
    with pytest.raises(UserError) as error:
        data.split("val")
    assert str(error.value) == sentence


def test_a_damaged_record_is_found(data: ImageData) -> None:
    (data.folder / "split.json").write_text(json.dumps({"sha256": {}}))
    with pytest.raises(UserError, match=r"^data/processed/split.json is damaged. Run: make data$"):
        data.split("val")


def test_data_that_do_not_fit_the_model_are_refused(data: ImageData) -> None:
    data.image_shape = (9, 9, 9)
    with pytest.raises(UserError, match=r"data.image_shape is \[9, 9, 9\], but the images in .* are \[\d"):
        data.split("val")


def test_nothing_left_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"val_fraction \+ test_fraction must be < 1, got 0.5 \+ 0.5"):
        prepare(tmp_path / "new", split_seed=0, val_fraction=0.5, test_fraction=0.5)
    assert not (tmp_path / "new").exists()
