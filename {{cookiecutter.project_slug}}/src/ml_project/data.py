"""The data as batches of tensors.

Legend: N images of a split, B of a batch, C channels, H W pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import runengine

from .prepare import command_for, files_of, settings_for

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]  # images_BCHW float32, labels_B int64


class ImageSplit(Dataset[Batch]):
    """One split. Images N C H W, float32 or uint8, given out as they are stored; labels int64 N."""

    def __init__(self, images_NCHW: runengine.StoredArray, labels_N: Tensor) -> None:
        self.images_NCHW = images_NCHW
        self.labels_N = labels_N

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> Batch:
        return self.images_NCHW[index], self.labels_N[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A complete batch in one indexing step: far quicker than image by image."""
        return self.images_NCHW.take(indices), self.labels_N[torch.as_tensor(indices, dtype=torch.int64)]


def as_float(images: Tensor) -> Tensor:
    """Bytes become float32 in 0..1; as late as can be, for they take a quarter of the room."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _as_is(batch: Batch) -> Batch:
    """`__getitems__` has made the batch already."""
    return batch


class ImageData(pl.LightningDataModule):
    """Reads what `prepare` wrote.

    Args:
        folder: holds the arrays of the three splits and split.json.
        image_shape: channels, height, width that the model expects.
        num_classes: labels are 0 .. num_classes - 1.
        batch_size: images a step, over all devices together; each takes its share.
        num_workers: processes that load batches; 0 loads in the training process. None: 0 for data in memory, for
            data on the disk one for each core that is left.
        seed: of the order of the training images, together with the epoch.
    """

    def __init__(
        self,
        folder: str,
        image_shape: Sequence[int],
        num_classes: int,
        batch_size: int,
        num_workers: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.splits: dict[str, ImageSplit] = {}

    def setup(self, stage: str) -> None:
        """Read the splits that this stage needs, each once."""
        for name in ("train", "val") if stage in ("fit", "validate") else ("test",):
            self.split(name)

    def split(self, name: str) -> ImageSplit:
        """The split `train`, `val` or `test`.

        Raises:
            UserError: a file is missing, damaged, or does not fit `image_shape` and `num_classes`.
        """
        if name not in self.splits:
            self.splits[name] = self._read(name)
        return self.splits[name]

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test")

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """On the device: the way there is a quarter as long for bytes."""
        if isinstance(batch, Tensor):  # Lightning's summary of a model sends `example_input_array` through here
            return as_float(batch)
        return as_float(batch[0]), batch[1]

    def _loader(self, name: str) -> DataLoader[Batch]:
        split, num_workers = self.split(name), self.num_workers
        if num_workers is None and not split.images_NCHW.on_disk:
            num_workers = 0  # to index memory is quicker than to send batches between processes
        if num_workers is None:
            num_workers, reason = runengine.suggested_workers(self.trainer)
            log.info("data.num_workers=%d: %s is read from the disk; %s", num_workers, split.images_NCHW.file, reason)
        return runengine.loader(
            split,
            self.batch_size,
            self.trainer,
            seed=self.seed,
            shuffle=name == "train",
            num_workers=num_workers,
            collate_fn=_as_is,
        )

    def _read(self, name: str) -> ImageSplit:
        images, labels, _ = files_of(self.folder, name)
        record_file = self.folder / "split.json"
        again = f"Run: {command_for(self.folder)}"
        for needed in (images, labels, record_file):
            if not needed.is_file():
                raise runengine.UserError(f"{needed.as_posix()} does not exist. {again}")
        try:
            record = json.loads(record_file.read_text(encoding="utf-8"))
            wanted, num_classes = record["sha256"], len(record["classes"])
            sums = {file: wanted[file.name] for file in (images, labels)}
        except (ValueError, KeyError, TypeError):
            raise runengine.UserError(f"{record_file.as_posix()} is damaged. {again}") from None
        try:
            split = ImageSplit(runengine.StoredArray(images), torch.from_numpy(np.load(labels, allow_pickle=False)))
        except (ValueError, EOFError):  # of a large file only the length is looked at: to read it takes minutes
            raise runengine.UserError(f"{images.as_posix()} is damaged: it is no array, or was cut. {again}") from None
        for file, checksum in sums.items():
            if not (file == images and split.images_NCHW.on_disk) and runengine.sha256(file) != checksum:
                raise runengine.UserError(
                    f"{file.as_posix()} is damaged: its SHA-256 is not the one in {record_file.name}. {again}"
                )
        shape = tuple(split.images_NCHW.rows.shape[1:])
        if (shape, num_classes) != (self.image_shape, self.num_classes):
            raise runengine.UserError(
                f"data.image_shape is {list(self.image_shape)} and data.num_classes {self.num_classes}, but the images "
                f"in {self.folder.as_posix()} are {list(shape)}, of {num_classes} classes. "
                f"Type {settings_for(shape, num_classes)}, or write it into conf/data/."
            )
        return split
