"""Hooks that nobody implements are not called: Lightning asks every callback six times a step, whatever is in them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

# those of a training step; what a validation step has Lightning looks at for their arguments
EACH_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
EACH_VALIDATION = ("on_validation_batch_start", "on_validation_batch_end")


class NoEmptyHooks(Callback):
    """Hides, while `fit` runs, the hooks of task and callbacks that are Lightning's own, which do nothing.

    Lightning calls what is callable, and sets names and timers around each call.
    """

    def __init__(self) -> None:
        self.hidden: list[tuple[Any, str]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            self._hide(callback, Callback, EACH_STEP + EACH_VALIDATION)
        self._hide(pl_module, pl.LightningModule, EACH_STEP)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._show()

    def _hide(self, owner: Any, base: type, names: tuple[str, ...]) -> None:
        for name in names:
            if getattr(getattr(owner, name), "__func__", None) is getattr(base, name):
                owner.__dict__[name] = None
                self.hidden.append((owner, name))

    def _show(self) -> None:
        for owner, name in self.hidden:
            if owner.__dict__.get(name, self) is None:  # nobody has set another since
                del owner.__dict__[name]
        self.hidden = []
