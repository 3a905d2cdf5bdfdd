"""Arrays in `.npy` files: small ones in memory, large ones read from the disk batch by batch."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..compat import shared_empty
from ..settings.errors import UserError
from . import prepared


class StoredArray:
    """Rows of a `.npy` file as tensors, of the dtype they are stored in.

    Args:
        file: written by `numpy.save`.

    Raises:
        UserError: it is no such file, or was cut.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.on_disk = file.stat().st_size > prepared.LARGE_BYTES
        try:  # copy on write: PyTorch wants to be able to change what it is given
            array = np.load(file, mmap_mode="c" if self.on_disk else None, allow_pickle=False)
        except (ValueError, EOFError):
            again = prepared.prepare_command(file.parent, damaged=True)
            raise UserError(f"{file.as_posix()} is damaged: it is no array, or was cut. Run: {again}") from None
        self.rows = torch.from_numpy(array)
        self.ahead: mmap.mmap | None = None
        if self.on_disk and hasattr(mmap, "MADV_WILLNEED"):  # not on Windows
            with file.open("rb") as opened:
                self.ahead = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self.start_bytes, self.row_bytes = array.offset, array[:1].nbytes

    def __reduce__(self) -> Any:
        """A loader process opens the file again, instead of being sent all of it."""
        return StoredArray, (self.file,)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]

    def take(self, indices: Sequence[int]) -> Tensor:
        """These rows, in one indexing step: far quicker than row by row."""
        if self.ahead is not None:  # ask for all of them without waiting: the disk then has much to do at once
            for index in indices:
                begin = self.start_bytes + index * self.row_bytes
                page = begin - begin % mmap.PAGESIZE
                self.ahead.madvise(mmap.MADV_WILLNEED, page, begin + self.row_bytes - page)
        chosen = torch.as_tensor(indices, dtype=torch.int64)  # an empty list gives an empty tensor
        if torch.utils.data.get_worker_info() is None:
            return self.rows[chosen]
        return torch.index_select(self.rows, 0, chosen, out=shared_empty(self.rows, len(chosen)))
