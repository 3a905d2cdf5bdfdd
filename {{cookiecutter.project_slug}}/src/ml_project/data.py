"""The data as batches of tensors.

Legend: N images of a split, B of a batch, C channels, H W pixels. Of a table, each row stands where an image does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import runengine

from .prepare import files_of

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]  # images_BCHW float32, labels_B int64


@dataclass(eq=False)
class ImageSplit(Dataset[Batch]):
    """One split, given out as it is stored."""

    images_NCHW: runengine.StoredArray  # float32 or uint8
    labels_N: Tensor  # int64

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


@dataclass(eq=False)
class ImageData(pl.LightningDataModule):
    """Reads what `prepare` wrote."""

    folder: Path  # holds the arrays of the three splits and split.json
    input_shape: Sequence[int]  # of an example, as the model expects it: channels, height, width; or the columns
    num_classes: int  # labels are 0 .. num_classes - 1
    batch_size: int  # images a step, over all devices together; each takes its share
    num_workers: int | None  # that load batches; None: 0 for data in memory, else one for each core that is left
    seed: int  # of the order of the training images, together with the epoch

    def __post_init__(self) -> None:
        super().__init__()
        self.folder, self.input_shape = Path(self.folder), tuple(self.input_shape or ())  # none before `prepare`
        self.splits: dict[str, ImageSplit] = {}

    def setup(self, stage: str) -> None:
        """Read the splits that this stage needs, each once."""
        for name in ("train", "val") if stage in ("fit", "validate") else ("test",):
            self.split(name)

    def split(self, name: str) -> ImageSplit:
        """The split `train`, `val` or `test`."""
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
        if num_workers is None and split.images_NCHW.on_disk:
            num_workers, reason = runengine.suggested_workers(self.trainer)
            log.info("data.num_workers=%d: %s is read from the disk; %s", num_workers, split.images_NCHW.file, reason)
        return runengine.loader(
            split,
            self.batch_size,
            self.trainer,
            seed=self.seed,
            shuffle=name == "train",
            num_workers=num_workers or 0,  # to index memory is quicker than to send batches between processes
            collate_fn=tuple,  # __getitems__ has made the batch already
        )

    def _read(self, name: str) -> ImageSplit:
        images_file, labels_file, _ = files_of(self.folder, name)
        settings = {"input_shape": list(self.input_shape), "num_classes": self.num_classes}
        runengine.read_prepared(self.folder, [images_file, labels_file], **settings)
        return ImageSplit(runengine.StoredArray(images_file), runengine.StoredArray(labels_file).rows)
