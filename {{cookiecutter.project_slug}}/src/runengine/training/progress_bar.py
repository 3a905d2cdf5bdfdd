"""Lightning's progress bar, drawn by time: after each step it would take longer than a short step does."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from .history import name_of_epoch

EVERY_S = 0.1


class EpochBar(TQDMProgressBar):
    """Lightning's bar, drawn ten times a second at most; it counts the epochs as the log does, from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn_at = 0.0

    def init_train_tqdm(self) -> Tqdm:
        return self._by_time(super().init_train_tqdm())

    def init_validation_tqdm(self) -> Tqdm:
        return self._by_time(super().init_validation_tqdm())

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(name_of_epoch(trainer), refresh=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.train_progress_bar.n = batch_idx + 1  # what is left at the end shows all of them
        if self._is_due():
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(self, *args: Any, **more: Any) -> None:
        if self._is_due():
            super().on_validation_batch_end(*args, **more)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}

    def _is_due(self) -> bool:
        return time.monotonic() - self.drawn_at > EVERY_S

    def _by_time(self, bar: Tqdm) -> Tqdm:
        draw = bar.refresh

        def refresh(*args: Any, **more: Any) -> None:
            if self._is_due():
                draw(*args, **more)
                self.drawn_at = time.monotonic()

        bar.refresh = refresh
        return bar
