"""Data loaders whose position is known: a training that was stopped in the middle of an epoch repeats nothing.

def train_dataloader(self):
    return runengine.loader(self.train, self.batch_size, self.trainer, seed=self.seed, shuffle=True)
"""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sized
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..compat import progress
from ..settings.cpu_limits import allowed_cores
from ..settings.errors import UserError

# a socket's path has 107 letters at most, of which Python adds 32; beyond that loader processes hang
LONGEST_TMPDIR = 75
MOST_WORKERS = 8  # more rarely help one device, and each takes a quarter of a gigabyte
LONGEST_WAIT_S = 600  # for a batch: a loader process whose shared memory is full never delivers one

log = logging.getLogger(__name__)


def loader(
    dataset: Dataset[Any],
    batch_size: int,
    trainer: pl.Trainer | None,
    *,
    seed: int,
    shuffle: bool,
    num_workers: int = 0,
    collate_fn: Callable[[Any], Any] | None = None,
) -> DataLoader[Any]:
    """A loader that gives each example to one device, and that resumes in the middle of an epoch.

    Args:
        dataset: has a length.
        batch_size: examples a step, over all devices together; each takes its share.
        trainer: of the data module: `self.trainer`. None for one device, from the beginning.
        seed: of the order, together with the epoch; the global random state is left alone.
        shuffle: True for training. False: the order of the dataset, each example once, as a test wants it.
        num_workers: processes that load batches; 0 loads in the training process.
        collate_fn: makes a batch of examples; None for PyTorch's own.

    Raises:
        UserError: `batch_size` does not divide by the devices, or the temporary folder's name is too long for workers.
    """
    rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
    in_training = trainer is not None and trainer.state.fn == "fit"
    if batch_size % world:
        nearest = max(1, round(batch_size / world)) * world
        raise UserError(f"batch_size must divide by the {world} devices, got {batch_size}. Try {nearest}.")
    folder = tempfile.gettempdir()
    if num_workers and os.name == "posix" and len(folder) > LONGEST_TMPDIR:
        raise UserError(
            f"the temporary folder's name is too long for data.num_workers={num_workers}: {len(folder)} "
            f"letters of at most {LONGEST_TMPDIR} ({folder}). Set TMPDIR=/tmp, or data.num_workers=0."
        )
    sampler: DistributedSampler[Any]
    if shuffle:
        sampler = ResumableOrder(dataset, rank, world, seed)
        if trainer:
            epoch, num_batches = progress(trainer)
            sampler.set_epoch(epoch)
            sampler.skip(num_batches * (batch_size // world))
    else:
        sampler = Share(dataset, rank, world)
    if num_workers:
        _end_loaders_at_exit()
    return DataLoader(
        dataset,
        batch_size=batch_size // world,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        timeout=LONGEST_WAIT_S if num_workers and not in_training else 0,  # a training has its watchdog
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate_fn,
        worker_init_fn=_leave_signals_to_the_run,
        generator=torch.Generator().manual_seed(seed),  # leaves PyTorch's global random state alone
    )


def suggested_workers(trainer: pl.Trainer | None) -> tuple[int, str]:
    """How many processes may load data that come from the disk, and why: one for each core that is left."""
    cores, reason = allowed_cores()
    left = cores
    if trainer and reason != "SLURM_CPUS_PER_TASK":
        left //= max(1, trainer.num_devices)  # each device has a process with loaders of its own
    return min(max(1, left - 1), MOST_WORKERS), f"{left} cores by {reason}"


class ResumableOrder(DistributedSampler[Any]):
    """The order of an epoch follows from seed and epoch alone; a resumed run leaves out what was seen of it."""

    def __init__(self, dataset: Dataset[Any], rank: int, world: int, seed: int) -> None:
        super().__init__(dataset, num_replicas=world, rank=rank, seed=seed)
        self.skipped = (-1, 0)

    def skip(self, num_examples: int) -> None:
        """In the present epoch, begin after so many examples of this process."""
        self.skipped = (self.epoch, num_examples)

    def __iter__(self) -> Iterator[Any]:
        epoch, num_examples = self.skipped
        return itertools.islice(super().__iter__(), num_examples if epoch == self.epoch else 0, None)


class Share(DistributedSampler[Any]):
    """Each example on one device, in order: PyTorch's own sampler fills up, and counts some twice."""

    def __init__(self, dataset: Dataset[Any], rank: int, world: int) -> None:
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=False)
        assert isinstance(dataset, Sized)
        self.share = range(rank, len(dataset), world)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.share)

    def __len__(self) -> int:
        return len(self.share)


def positions(loaders: Any) -> set[str]:
    """How the loaders of a training find their place again.

    `known`: one of ours. `saved`: it has a state of its own, as torchdata's has, which this engine cannot check.
    `lost`: any other.
    """
    if isinstance(loaders, dict):
        return set().union(*map(positions, loaders.values()))
    if isinstance(loaders, list | tuple):
        return set().union(*map(positions, loaders))
    if isinstance(getattr(loaders, "sampler", None), ResumableOrder):
        return {"known"}
    return {"saved" if hasattr(loaders, "state_dict") else "lost"}


@functools.cache  # once, however many loaders there are
def _end_loaders_at_exit() -> None:
    """Not on import: what is registered last runs first, and multiprocessing would wait for loaders that are stuck."""
    atexit.register(_end_loaders)


def _end_loaders() -> None:
    """Those that are stuck, and deaf to SIGTERM, would keep the program from ending."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C and Slurm signal every process; a loader that ends at once would prevent the last checkpoint."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
