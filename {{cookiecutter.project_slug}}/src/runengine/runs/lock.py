"""One process at a time trains in a run's folder, or hands out the runs of a sweep."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..settings.errors import UserError
from .run import Run

LOCK_WAIT_S = 15  # a killed run's loader processes hold its lock until they notice, after 5 s at most on Linux


def owner(run: Run) -> dict[str, Any] | None:
    """The start that holds the lock of this folder, if one does."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(run.lock, timeout=0):
            return None
    except Timeout:
        return (run.read_starts() or [{}])[-1]


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the folder's lock; the system takes it back however the process ends, so none is ever stale."""
    from filelock import FileLock, Timeout

    lock = FileLock(run.lock)
    holder = owner(run)
    try:
        lock.acquire(timeout=0 if holder and _lives(holder) else LOCK_WAIT_S)
    except Timeout:
        holder, kind = holder or {}, "sweep" if run.is_sweep() else "run"
        raise UserError(
            f"{run.folder} is in use: process {holder.get('pid')} on {holder.get('host')} trains there since "
            f"{holder.get('started_at')}. Wait for it, stop it, or leave {kind}_dir out to start a new {kind}."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _lives(owner: dict[str, Any]) -> bool:
    """True if it is known to live: a process of this machine. A lock of another machine may outlive its process."""
    try:
        os.kill(int(owner["pid"]), 0)
    except (OSError, KeyError, ValueError):
        return False
    return owner.get("host") == platform.node()
