"""What a run says: to the terminal in short, to `train.log` in full."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO


def open_log(file: Path) -> None:
    """Messages to the terminal; the same with the time, and every warning, to this file."""
    in_file = logging.FileHandler(file, encoding="utf-8")
    in_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    on_screen = _Screen(sys.stdout)
    on_screen.setFormatter(_ScreenFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[in_file, on_screen], force=True)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a full disk or a closed terminal is no reason for a traceback of each message


def stay_silent() -> None:
    """For the other ranks of a run: what they would say, rank 0 says."""
    logging.basicConfig(level=logging.INFO, handlers=[logging.NullHandler()], force=True)
    logging.captureWarnings(True)


def quiet_lightning() -> None:
    """Keep Lightning's warnings, drop its advertisements; to be called after its import, which sets the level."""
    for chatty in ("pytorch_lightning", "lightning_fabric"):
        logger = logging.getLogger(chatty)
        logger.handlers.clear()  # its own handler would show everything twice
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    for expected in (
        ".*does not have many workers.*",  # batches of data in memory are indexed
        ".*your dataloader is not resumable.*",  # data/loader.py resumes in the middle of an epoch
        ".*callbacks used to create the checkpoint need to be provided.*",  # settings that differ are refused before
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's does
        ".*srun.* command is available.*",  # process.py knows whether it was used
        ".*LeafSpec.*",  # Lightning 2.6.6 with torch 2.13
    ):
        warnings.filterwarnings("ignore", message=expected)


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def listed(names: Sequence[str], most: int = 5) -> str:
    """`a, b, c, d, e and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def size(num_bytes: float) -> str:
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.0f} KiB"


class _Screen(logging.StreamHandler[TextIO]):
    """The terminal: no traceback, which Python prints itself; no line in the middle of a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            return
        bars = sys.modules.get("tqdm")
        with bars.tqdm.external_write_mode(self.stream) if bars else contextlib.nullcontext():
            super().emit(record)


class _ScreenFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The message alone; of a Python warning its sentence, without file and line."""
        text = record.getMessage().strip()
        if record.name != "py.warnings":
            return text
        return re.sub(r"^\S+:\d+: (\w+: )?", "warning: ", text.splitlines()[0])
