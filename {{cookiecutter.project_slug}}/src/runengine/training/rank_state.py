"""What each process of a run has of its own: random generators and half-counted metrics."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torchmetrics import Metric

from .. import compat
from ..data.loader import positions
from . import distributed

log = logging.getLogger(__name__)


class RankState(Callback):
    """What each process of a run has of its own: random generators and half-counted metrics.

    The checkpoint has those of all, so that a resumed run draws what it would have drawn.
    """

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] = []
        self.sums: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        metrics, sums = {}, {}
        if compat.progress(trainer)[1]:  # at the end of an epoch they are reset
            sums = compat.logged_sums(trainer)
            for name, metric in _metrics(pl_module).items():
                metrics[name] = {key: _on_cpu(value) for key, value in metric.metric_state.items()}
        checkpoint["rank_states"] = distributed.gather({"random": _random_state(), "metrics": metrics, "sums": sums})

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Before the loaders are made: the order of a plain one follows from the global random state."""
        self.saved = checkpoint["rank_states"]

        def restore() -> None:
            if len(self.saved) == trainer.world_size:
                _restore_random_state(self.saved[trainer.global_rank]["random"])

        compat.before_data_are_set_up(trainer, restore)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        saved, self.saved = self.saved, []
        if not saved:
            return
        if len(saved) != trainer.world_size:
            log.warning(
                "trained by %d processes so far, now by %d: random numbers differ from here on",
                len(saved),
                trainer.world_size,
            )
        _say_what_is_repeated(trainer)
        if len(saved) == trainer.world_size:
            self.sums = saved[trainer.global_rank]["sums"]
        for state in saved[trainer.global_rank :: trainer.world_size]:
            for name, metric in _metrics(pl_module).items():
                if name in state["metrics"]:
                    metric.merge_state({key: _to(value, metric) for key, value in state["metrics"][name].items()})

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.sums:
            compat.add_logged_sums(trainer, self.sums)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sums = {}


def _say_what_is_repeated(trainer: pl.Trainer) -> None:
    """Where the place of a loader is not known, a resumed run may see other examples: never in silence."""
    epochs, batches = compat.progress(trainer)
    found = positions(trainer.train_dataloader)
    if batches and "lost" in found:
        log.warning(
            "epoch %d is resumed after %d batches, but its data loader does not know its position: it begins again, so "
            "some examples come twice in this epoch. runengine.loader(...) makes one that repeats nothing",
            epochs + 1,
            batches,
        )
    if "saved" in found:
        log.warning(
            "the data loader has restored a position that it saved itself. Whether the examples are those of a "
            "training that was not stopped, this engine cannot see: "
            "runengine.testing.assert_resumes_exactly(...) finds out"
        )


def _metrics(module: torch.nn.Module) -> dict[str, Metric]:
    return {name: part for name, part in module.named_modules() if isinstance(part, Metric)}


def _on_cpu(value: Any) -> Any:
    return [part.cpu() for part in value] if isinstance(value, list) else value.detach().cpu().clone()


def _to(value: Any, metric: Metric) -> Any:
    return [part.to(metric.device) for part in value] if isinstance(value, list) else value.to(metric.device)


def _random_state() -> dict[str, Any]:
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys).copy()), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        # this process's GPU alone: with the others' each process would open a context on every GPU
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy(), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
