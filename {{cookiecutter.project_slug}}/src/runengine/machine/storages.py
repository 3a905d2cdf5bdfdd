"""The memory of tensors, counted while they live."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages that operations make within it: `now`, and the `peak`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors(args, kwargs):
            self._see(tensor.untyped_storage(), 0)  # what was there before is not counted
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._see(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        return result

    def _see(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def num_bytes(values: Iterable[Any]) -> int:
    """Of the tensors among these, each storage once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _tensors(list(values))}
    return sum(storages.values())


def _tensors(*trees: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]
