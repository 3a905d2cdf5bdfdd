"""The data as batches of tensors.

Legend: N images of a split, B of a batch, C channels, H W pixels.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import math
import mmap
import multiprocessing
import os
import signal
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from .cores import allowed_cores
from .download import sha256
from .errors import UserError
from .prepare import command_for, settings_for
from .sources import LARGE_BYTES

# a socket's path has 107 letters at most, of which Python adds 32; beyond that loaders wait for ever
LONGEST_TMPDIR = 75
MOST_WORKERS = 8  # more rarely help one device, and each takes a quarter of a gigabyte
LONGEST_WAIT_S = 600  # for a batch: a loader process whose shared memory is full would be waited for for ever

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]  # images_BCHW float32, labels_B int64


@dataclass(frozen=True)
class Mapped:
    """A file in the memory's address space, and where its images begin."""

    file: Path
    memory: mmap.mmap
    start_bytes: int

    def read_ahead(self, first: int, num_bytes: int) -> None:
        """Ask for these bytes of the images, without waiting: the disk then has much to do at once."""
        if hasattr(mmap, "MADV_WILLNEED"):  # not on Windows
            begin = self.start_bytes + first
            page = begin - begin % mmap.PAGESIZE
            self.memory.madvise(mmap.MADV_WILLNEED, page, begin + num_bytes - page)


class ImageSplit(Dataset[Batch]):
    """One split. Images N C H W, float32 or uint8, given out as they are; labels int64 N.

    Args:
        mapped: where the images lie, if they are read from the disk batch by batch.
    """

    def __init__(self, images_NCHW: Tensor, labels_N: Tensor, mapped: Mapped | None = None) -> None:
        self.images_NCHW = images_NCHW
        self.labels_N = labels_N
        self.mapped = mapped

    def __reduce__(self) -> Any:
        """A loader that does not inherit the mapped file opens it again, instead of being sent all of it."""
        return (read_split, (self.mapped.file,)) if self.mapped else super().__reduce__()

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> Batch:
        return self.images_NCHW[index], self.labels_N[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch in one indexing step: far quicker than image by image."""
        if self.mapped:
            image_bytes = self.images_NCHW[0].nbytes
            for index in indices:
                self.mapped.read_ahead(index * image_bytes, image_bytes)
        chosen = torch.as_tensor(indices, dtype=torch.int64)  # also of none
        return self.images_NCHW[chosen], self.labels_N[chosen]


def as_float(images: Tensor) -> Tensor:
    """Bytes become float32 in 0..1; as late as can be, for they take a quarter of the room."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


class ImageData(pl.LightningDataModule):
    """Reads what `prepare` wrote.

    Args:
        folder: holds train.npz, val.npz, test.npz and split.json.
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

    def split(self, name: str) -> ImageSplit:
        """The split `train`, `val` or `test`.

        Raises:
            UserError: a file is missing, damaged, or does not fit `image_shape` and `num_classes`.
        """
        file = self.folder / f"{name}.npz"
        record_file = self.folder / "split.json"
        again = f"Run: {command_for(self.folder)}"
        for needed in (file, record_file):
            if not needed.is_file():
                raise UserError(f"{needed.as_posix()} does not exist. {again}")
        try:
            record = json.loads(record_file.read_text(encoding="utf-8"))
            wanted, num_classes = record["sha256"][name], len(record["classes"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{record_file.as_posix()} is damaged. {again}") from None
        # of a large one the end alone is looked at, by zipfile: to read all of it would take minutes
        if file.stat().st_size <= LARGE_BYTES and sha256(file) != wanted:
            raise UserError(f"{file.as_posix()} is damaged: its SHA-256 is not the one in {record_file.name}. {again}")
        split = read_split(file)
        shape = tuple(split.images_NCHW.shape[1:])
        if (shape, num_classes) != (self.image_shape, self.num_classes):
            raise UserError(
                f"data.image_shape is {list(self.image_shape)} and data.num_classes {self.num_classes}, but the images "
                f"in {self.folder.as_posix()} are {list(shape)}, of {num_classes} classes. "
                f"Type {settings_for(shape, num_classes)}, or write it into conf/data/."
            )
        return split

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

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return as_float(batch[0]), batch[1]  # on the device: the way there is a quarter as long for bytes

    def _share(self, name: str) -> DataLoader[Batch]:
        """Each image on one device: a sampler that fills up would count some twice."""
        split = self.split(name)
        rank, world = self._place()
        return self._loader(split, range(rank, len(split), world))

    def _place(self) -> tuple[int, int]:
        """Of this process: its number, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, split: ImageSplit, order: Sampler[Any] | range) -> DataLoader[Batch]:
        num_workers = self._num_workers(split) if self.num_workers is None else self.num_workers
        folder = tempfile.gettempdir()
        if num_workers and os.name == "posix" and len(folder) > LONGEST_TMPDIR:
            raise UserError(
                f"the temporary folder's name is too long for data.num_workers={num_workers}: {len(folder)} "
                f"letters of at most {LONGEST_TMPDIR} ({folder}). Set TMPDIR=/tmp, or data.num_workers=0."
            )
        if num_workers:
            atexit.register(_end_loaders)  # now, not on import: to run before multiprocessing waits for them
        return DataLoader(
            split,
            batch_size=self.batch_size // self._place()[1],
            sampler=order,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            timeout=LONGEST_WAIT_S if num_workers else 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_it_is,  # __getitems__ has made the batch already
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator().manual_seed(self.seed),  # leaves PyTorch's global random state alone
        )

    def _num_workers(self, split: ImageSplit) -> int:
        if split.mapped is None:
            return 0  # to index memory is quicker than to send batches between processes
        cores, reason = allowed_cores()
        if self.trainer and reason != "SLURM_CPUS_PER_TASK":
            cores //= max(1, self.trainer.num_devices)  # each device has a process with loaders of its own
        num_workers = min(max(1, cores - 1), MOST_WORKERS)
        file = split.mapped.file
        log.info("data.num_workers=%d: %s is read from the disk; %d cores by %s", num_workers, file, cores, reason)
        return num_workers


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


def read_split(file: Path) -> ImageSplit:
    """A split of `prepare`: into memory, or mapped from the disk if it is large.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            labels_N = torch.from_numpy(arrays["labels"])
            if file.stat().st_size <= LARGE_BYTES:
                return ImageSplit(torch.from_numpy(arrays["images"]), labels_N)
        images_NCHW, mapped = _map(file, "images.npy")
        return ImageSplit(images_NCHW, labels_N, mapped)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{file.as_posix()} is damaged: it holds no arrays `images` and `labels`.") from None


def _map(file: Path, name: str) -> tuple[Tensor, Mapped]:
    """An array where it lies in a zip file that is not compressed; NumPy maps only files of one array."""
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(name)
        with archive.open(member) as content:
            np.lib.format.read_magic(content)
            shape, _, dtype = np.lib.format.read_array_header_1_0(content)
            header_bytes = content.tell()
    with file.open("rb") as whole:  # the member's own header: 30 bytes, its name, extra fields (APPNOTE.TXT, 4.3.7)
        whole.seek(member.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", whole.read(4))
        # what is written to a copy stays in memory; PyTorch wants to be able to
        memory = mmap.mmap(whole.fileno(), 0, access=mmap.ACCESS_COPY)
    start = member.header_offset + 30 + name_bytes + extra_bytes + header_bytes
    if hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)
    array = np.frombuffer(memory, dtype, math.prod(shape), start).reshape(shape)
    return torch.from_numpy(array), Mapped(file, memory, start)


def _as_it_is(batch: Any) -> Any:
    return batch


def _end_loaders() -> None:
    """Those that are stuck, and deaf to SIGTERM, would keep the program from ending."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C and Slurm tell every process; loaders that end at once would take the last checkpoint with them."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
