"""What happens beside the training loop; the state of each goes into the checkpoint."""

from __future__ import annotations

import csv
import logging
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar

from .run import Run

log = logging.getLogger(__name__)


class History(Callback):
    """One row an epoch: in the log, in `history.csv`, and in the checkpoint, where a continued run finds it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **metrics})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        log.info("epoch %d of %s  %s", trainer.current_epoch + 1, trainer.max_epochs, shown)
        if trainer.is_global_zero:
            self.write()

    def write(self) -> None:
        with self.file.open("w", newline="", encoding="utf-8") as file:
            columns = dict.fromkeys(name for row in self.rows for name in row)
            table = csv.DictWriter(file, fieldnames=list(columns))
            table.writeheader()
            table.writerows(self.rows)

    def best(self, monitor: str) -> dict[str, float]:
        """The row with the least `monitor`."""
        return min(self.rows, key=lambda row: row[monitor])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


class RandomState(Callback):
    """Puts the random generators of a continued run where they were: dropout goes on as if nothing had happened."""

    def __init__(self) -> None:
        self.restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
        return {
            "python": random.getstate(),
            "numpy": (torch.from_numpy(np.asarray(keys).copy()), position, has_gauss, gauss),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state, self.restored = self.restored, None
        if state is None:
            return
        random.setstate(state["python"])
        keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy(), position, has_gauss, gauss))
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


class EpochBar(TQDMProgressBar):
    """Lightning's bar, without the number of the logger's version."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


def callbacks(run: Run, history: History) -> list[Callback]:
    """In this order: `last` is written after `best`, so it knows which one is best."""
    best = ModelCheckpoint(
        dirpath=run.checkpoints,
        filename="best",
        monitor="val/loss",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    last = ModelCheckpoint(
        dirpath=run.checkpoints,
        filename="last",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return [history, RandomState(), *([EpochBar()] if sys.stderr.isatty() else []), best, last]
