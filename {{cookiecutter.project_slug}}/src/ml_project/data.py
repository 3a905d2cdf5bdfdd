"""The data as batches of tensors.

Legend: N images of a split, B of a batch, C channels, H W pixels.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from .errors import UserError
from .prepare import sha256

# a socket's path has 107 letters at most, of which Python adds 32; beyond that loaders wait for ever
LONGEST_TMPDIR = 75

Batch = tuple[Tensor, Tensor]  # images_BCHW float32 in 0..1, labels_B int64


class ImageSplit(Dataset[Batch]):
    """One split, in memory. Images float32 N C H W in 0..1, labels int64 N."""

    def __init__(self, images_NCHW: Tensor, labels_N: Tensor) -> None:
        self.images_NCHW = images_NCHW
        self.labels_N = labels_N

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> Batch:
        return self.images_NCHW[index], self.labels_N[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch in one indexing step: for data in memory far quicker than image by image."""
        chosen = torch.as_tensor(indices)
        return self.images_NCHW[chosen], self.labels_N[chosen]


class ImageData(pl.LightningDataModule):
    """Reads what `prepare` wrote.

    Args:
        folder: holds train.npz, val.npz, test.npz and split.json.
        image_shape: channels, height, width that the model expects.
        num_classes: labels are 0 .. num_classes - 1.
        batch_size: images a step, over all devices together; each takes its share.
        num_workers: processes that load batches; 0 loads in the training process.
        seed: of the order of the training images, together with the epoch.
    """

    def __init__(
        self,
        folder: str,
        image_shape: Sequence[int],
        num_classes: int,
        batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.image_shape = tuple(image_shape)
        self.num_classes = num_classes
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def split(self, name: str) -> ImageSplit:
        """The split `train`, `val` or `test`.

        Raises:
            UserError: a file is missing, damaged, or does not fit `image_shape` and `num_classes`.
        """
        file = self.folder / f"{name}.npz"
        record = self.folder / "split.json"
        for needed in (file, record):
            if not needed.is_file():
                raise UserError(f"{needed.as_posix()} does not exist. Run: make data")
        try:
            wanted = json.loads(record.read_text(encoding="utf-8"))["sha256"][name]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{record.as_posix()} is damaged. Run: make data") from None
        if sha256(file) != wanted:
            raise UserError(
                f"{file.as_posix()} is damaged: its SHA-256 is not the one in {record.name}. Run: make data"
            )
        images_NCHW, labels_N = read_npz(file)
        if images_NCHW.shape[1:] != self.image_shape:
            shape = list(images_NCHW.shape[1:])
            raise UserError(f"data.image_shape is {list(self.image_shape)}, but the images in {file} are {shape}.")
        if labels_N.min() < 0 or labels_N.max() >= self.num_classes:
            largest = int(labels_N.max())
            raise UserError(f"data.num_classes is {self.num_classes}, but {file} has the label {largest}.")
        return ImageSplit(torch.from_numpy(images_NCHW), torch.from_numpy(labels_N))

    def train_dataloader(self) -> DataLoader[Batch]:
        split = self.split("train")
        rank, world = self._place()
        order = ResumableOrder(split, rank, world, self.seed)
        if self.trainer:
            epoch, num_batches = progress(self.trainer)
            order.set_epoch(epoch)
            order.skip(num_batches * (self.batch_size // world))
        return self._loader(split, order)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._share("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._share("test")

    def _share(self, name: str) -> DataLoader[Batch]:
        """Each image on one device: a sampler that fills up would count some twice."""
        split = self.split(name)
        rank, world = self._place()
        return self._loader(split, range(rank, len(split), world))

    def _place(self) -> tuple[int, int]:
        """Of this process: its number, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, split: ImageSplit, order: Sampler[Any] | range) -> DataLoader[Batch]:
        folder = tempfile.gettempdir()
        if self.num_workers and os.name == "posix" and len(folder) > LONGEST_TMPDIR:
            raise UserError(
                f"the temporary folder's name is too long for data.num_workers={self.num_workers}: {len(folder)} "
                f"letters of at most {LONGEST_TMPDIR} ({folder}). Set TMPDIR=/tmp, or data.num_workers=0."
            )
        return DataLoader(
            split,
            batch_size=self.batch_size // self._place()[1],
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_it_is,  # __getitems__ has made the batch already
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator().manual_seed(self.seed),  # leaves PyTorch's global random state alone
        )


class ResumableOrder(DistributedSampler[Batch]):
    """The order of an epoch follows from seed and epoch alone; a continued run leaves out what was seen of it."""

    def __init__(self, split: ImageSplit, rank: int, world: int, seed: int) -> None:
        super().__init__(split, num_replicas=world, rank=rank, seed=seed)
        self.skipped = (-1, 0)

    def skip(self, num_images: int) -> None:
        """In the present epoch, begin after so many images of this process."""
        self.skipped = (self.epoch, num_images)

    def __iter__(self) -> Iterator[Batch]:
        epoch, num_images = self.skipped
        return itertools.islice(super().__iter__(), num_images if epoch == self.epoch else 0, None)


def progress(trainer: pl.Trainer) -> tuple[int, int]:
    """Epochs that are finished, and batches that are done of the next one."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return epochs.processed, batches.processed if epochs.started > epochs.processed else 0


def read_npz(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """`images` (float32) and `labels` (int64) of one split's file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["images"], arrays["labels"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{file.as_posix()} is damaged: it holds no arrays `images` and `labels`.") from None


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C and Slurm tell every process; loaders that end at once would take the last checkpoint with them."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
