"""The data: split once, disjoint, checksummed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runengine
import torch
from conftest import SOURCE
from ml_project.data import ImageData, ImageSplit
from ml_project.datasets import digits
from ml_project.prepare import prepare
from ml_project.train import build_data
from runengine import UserError, compose
from runengine.data import arrays, loader, prepared
from runengine.settings import project
from torch.utils.data import DataLoader, Dataset

SPLITS = ("train", "val", "test")
FRACTIONS = {"val_fraction": 0.15, "test_fraction": 0.2}


@pytest.fixture
def data() -> ImageData:
    return build_data(compose("train", ["data.batch_size=32"]))


def rows(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.load(folder / f"{name}_rows.npy") for name in SPLITS}


def test_every_image_is_in_exactly_one_split(processed: Path) -> None:
    together = np.concatenate(list(rows(processed).values()))
    assert sorted(together) == list(range(len(together)))


def test_each_class_has_the_share_asked_for_everywhere(tmp_path: Path) -> None:
    prepare(tmp_path / "new", digits, split_seed=0, **FRACTIONS)
    counts = [np.bincount(np.load(tmp_path / f"new/{name}_labels.npy")) for name in SPLITS]
    np.testing.assert_allclose(counts, np.outer([0.65, 0.15, 0.2], np.sum(counts, axis=0)), atol=1.5)


def test_the_seed_alone_decides_the_split(tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate((0, 0, 1)):
        prepare(tmp_path / str(number), digits, split_seed=seed, **FRACTIONS)
        files.append([file.read_bytes() for file in sorted((tmp_path / str(number)).glob("*.npy"))])
    assert files[0] == files[1] != files[2]


def test_the_digits_are_split_as_ever(tmp_path: Path) -> None:
    """The figures in conf/train.yaml were measured on these rows."""
    prepare(tmp_path / "new", digits, split_seed=0, **FRACTIONS)
    together = np.concatenate(list(rows(tmp_path / "new").values()))
    assert hashlib.sha256(together.astype("<i8").tobytes()).hexdigest()[:16] == "370d17951fb6ff8e"


def test_batches_have_the_configured_shape(data: ImageData) -> None:
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (32, *data.input_shape)
    assert labels.shape == (32,)
    assert images.dtype == torch.float32
    assert images.isfinite().all()


def test_bytes_become_numbers_from_0_to_1(data: ImageData) -> None:
    np.save("bytes.npy", np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8))
    split = ImageSplit(arrays.StoredArray(Path("bytes.npy")), torch.arange(4))
    assert split.__getitems__([])[0].shape == (0, 1, 8, 8)
    images, labels = data.on_after_batch_transfer(split.__getitems__([3, 0]), 0)
    assert labels.tolist() == [3, 0]
    assert (images * 255).int().flatten().tolist() == [*range(192, 256), *range(64)]
    assert images.max() == 1


@dataclass
class Rows(Dataset[Any]):
    stored: arrays.StoredArray

    def __len__(self) -> int:
        return len(self.stored)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, bool]:
        rows = self.stored.take(indices)
        return rows, rows.untyped_storage().is_shared()


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64"])
@pytest.mark.parametrize("large_bytes", [0, 1 << 30])
def test_a_loader_process_makes_a_batch_where_it_is_read(
    dtype: str, large_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory that processes share: it is not copied once more to be sent."""
    monkeypatch.setattr(prepared, "LARGE_BYTES", large_bytes)
    whole = np.arange(7 * 2 * 3).reshape(7, 2, 3).astype(dtype)
    np.save("rows.npy", whole)
    batches: dict[int, list[tuple[torch.Tensor, bool]]] = {}
    for num_workers in (0, 1):
        dataset = Rows(arrays.StoredArray(Path("rows.npy")))
        batches[num_workers] = list(DataLoader(dataset, 3, num_workers=num_workers, collate_fn=lambda batch: batch))
    assert [shared for _, shared in batches[0]] == [False] * 3
    assert [shared for _, shared in batches[1]] == [True] * 3
    for (here, _), (sent, _) in zip(batches[0], batches[1], strict=True):
        assert here.dtype == sent.dtype
        assert torch.equal(here, sent)
    assert np.array_equal(torch.cat([sent for sent, _ in batches[1]]).numpy(), whole)


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


STUCK = """
import time
from ml_project.data import ImageSplit
from ml_project.train import build_data
from runengine import compose
from runengine.data import loader
from runengine.settings.errors import explain

loader.LONGEST_WAIT_S = 1
ImageSplit.__getitems__ = lambda *_: time.sleep(1000)
try:
    next(iter(build_data(compose("train", ["data.num_workers=1"])).train_dataloader()))
except RuntimeError as error:
    print(explain(error))
"""


def test_loaders_that_give_nothing_are_not_waited_for_for_ever() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", STUCK]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True).stdout
    assert "`make doctor` knows the usual causes (shared memory, open files)" in said


def test_missing_data_says_what_to_run(data: ImageData) -> None:
    (data.folder / "train_images.npy").unlink()
    with pytest.raises(UserError, match=r"^data/processed/train_images.npy does not exist. Run: make data$"):
        data.split("train")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_damaged_file_is_found(data: ImageData, kind: str) -> None:
    with (data.folder / f"val_{kind}.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    sentence = (
        f"data/processed/val_{kind}.npy is damaged: its SHA-256 is not the one in split.json. Run: make data FORCE=1"
    )
    with pytest.raises(UserError) as error:
        data.split("val")
    assert str(error.value) == sentence


def test_a_damaged_record_is_found(data: ImageData) -> None:
    (data.folder / "split.json").write_text(json.dumps({"sha256": {}}))
    with pytest.raises(UserError, match=r"^data/processed/split.json is damaged. Run: make data FORCE=1$"):
        data.split("val")


def test_a_record_without_a_key_is_damaged_when_it_is_asked_for(data: ImageData) -> None:
    (data.folder / "split.json").write_text(json.dumps({"sha256": {}}))
    record = runengine.read_prepared(data.folder, [])
    with pytest.raises(UserError, match=r"^data/processed/split.json is damaged. Run: make data FORCE=1$"):
        record["mean"]


def test_data_that_do_not_fit_the_model_are_refused_with_what_to_type(data: ImageData) -> None:
    shape, data.input_shape = list(data.input_shape), (9, 9, 9)
    with pytest.raises(UserError) as error:
        data.split("val")
    assert str(error.value) == (
        f"data.input_shape is [9, 9, 9], but for data/processed it must be {shape}. A run wants the data it was "
        "trained on; a new one has to type nothing: let conf/data/ say ${prepared:input_shape}."
    )


def test_other_data_say_how_they_are_made(data: ImageData) -> None:
    data.folder = Path("data/fashion_mnist")
    sentence = r"^data/fashion_mnist/val_images.npy does not exist. Run: python -m \w+.prepare dataset=fashion_mnist$"
    with pytest.raises(UserError, match=sentence):
        data.split("val")


def test_numbered_data_are_made_by_the_script_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = project.current()
    monkeypatch.setattr(project, "current", lambda: dataclasses.replace(here, folder=tmp_path))
    folder = Path("data/folds/3")
    wanted = {False: "make data", True: "make data FORCE=1"}
    for damaged, command in wanted.items():
        assert prepared.prepare_command(folder, damaged=damaged) == command
    (tmp_path / "folds.py").touch()
    for damaged in wanted:
        assert prepared.prepare_command(folder, damaged=damaged) == "python -m ml_project.folds"
    for name, sentence in (
        ("1.old", ". Run: "),  # a copy of somebody's
        ("10", ": data/folds holds 10. Take one of these, or have more written by: "),
        ("2", ": data/folds holds 2, 10. Take one of these, or have more written by: "),
        ("3", ". Run: "),
    ):
        Path("data/folds", name).mkdir(parents=True)
        Path("data/folds", name, "split.json").touch()
        with pytest.raises(UserError) as error:
            runengine.read_prepared(folder, [folder / "x.npy"])
        assert str(error.value) == f"data/folds/3/x.npy does not exist{sentence}python -m ml_project.folds"


def test_large_data_stay_on_the_disk(
    data: ImageData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_memory = list(data.train_dataloader())
    monkeypatch.setattr(prepared, "LARGE_BYTES", 1000)
    monkeypatch.setattr(loader, "allowed_cores", lambda: (3, "this machine"))
    data.splits.clear()
    split = data.split("train")  # for processes that do not inherit what is mapped
    assert len(pickle.dumps(split)) < split.labels_N.numel() * split.labels_N.element_size() + 1000
    caplog.set_level("INFO")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has its own opinion on how many processes
        streamed = list(data.train_dataloader())
    assert (
        "data.num_workers=2: data/processed/train_images.npy is read from the disk; 3 cores by this machine"
        in caplog.text
    )
    for there, here in zip(in_memory, streamed, strict=True):
        assert torch.equal(there[0], here[0])
        assert torch.equal(there[1], here[1])


def test_a_large_file_that_was_cut_is_found(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "LARGE_BYTES", 1000)
    file = data.folder / "val_images.npy"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"^data/processed/val_images.npy is damaged: it is no array, or was cut. "):
        data.split("val")


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0, 0.2), (0.2, -0.1)])
def test_a_split_without_examples_is_refused(tmp_path: Path, val: float, test: float) -> None:
    with pytest.raises(UserError) as error:
        prepare(tmp_path / "new", digits, split_seed=0, val_fraction=val, test_fraction=test)
    assert str(error.value) == (
        "val_fraction and test_fraction must be > 0, and val_fraction + test_fraction must be < 1, got "
        f"{val} + {test}. Leave something to each split, train too."
    )
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"was not made by prepare, and would be replaced. Choose another folder=...$"):
        prepare(tmp_path, lambda: pytest.fail("the data were read first"), split_seed=0, **FRACTIONS)
    assert (tmp_path / "thesis.txt").exists()
