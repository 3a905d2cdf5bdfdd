"""This project's own training step and data loader, whatever its task is."""

from __future__ import annotations

import importlib
import inspect
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.data import extract_batch_size
from torch import Tensor, nn
from torchmetrics import Metric

from ..settings import project
from ..settings.console import quiet_lightning
from ..settings.errors import UserError
from .steps import training
from .timing import Reading, seconds


def own_step(cfg: DictConfig, dtype: str, device: torch.device, budget_s: float, compiled: bool = False) -> Reading:
    """A training step of the project's task and its first optimizer, on one batch of its data; loading is not measured.

    Raises:
        UserError: the data are not prepared, or the task does not leave its step to Lightning.
    """
    data = _built("build_data", cfg)
    data.setup("fit")  # settings of the model may be read from what was prepared
    task = _built("build_task", cfg)
    if not task.automatic_optimization:
        raise UserError("not measured: the task steps its optimizers itself (automatic_optimization is False)")

    def measure(trainer: pl.Trainer, batch: Any) -> Reading:
        parameters = inspect.signature(task.training_step).parameters.values()
        takes_index = len(parameters) > 1 or any(each.kind == each.VAR_POSITIONAL for each in parameters)

        def loss_of() -> Tensor:
            result: Any = task.training_step(batch, 0) if takes_index else task.training_step(batch)
            loss = result.get("loss") if isinstance(result, Mapping) else result
            if not isinstance(loss, Tensor):
                raise UserError("not measured: training_step gives no loss for the first batch")
            return loss

        parts = list(_parts(task)) if compiled else []
        return training(loss_of, trainer.optimizers[0], extract_batch_size(batch), dtype, device, budget_s, parts)

    # there the batch is on the device, and the optimizers are built
    at_first_batch = LambdaCallback(on_train_batch_start=lambda trainer, _, batch, __: _end(measure(trainer, batch)))
    return _in_a_training(task, data, cfg, device, at_first_batch)


class _Measured(Exception):
    """Ends a training once something was measured; its argument is the reading."""


def _end(reading: Reading) -> None:
    raise _Measured(reading)


class _NoTask(pl.LightningModule):
    """Takes the place of the task where only the data are measured: the loaders are built, and no step is taken."""

    def training_step(self, batch: Any) -> None:
        """Never called."""

    def configure_optimizers(self) -> None:
        """There is nothing to learn."""


def _in_a_training(
    task: pl.LightningModule, data: pl.LightningDataModule, cfg: DictConfig, device: torch.device, callback: pl.Callback
) -> Reading:
    """Train with the project's data until something is measured, so that `self.trainer` and `self.log` work."""
    quiet_lightning()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning warns that nothing is logged, and that other devices are not used
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index] if device.type == "cuda" else 1,
            max_epochs=OmegaConf.select(cfg, "trainer.max_epochs", default=1),
            callbacks=[callback],
            plugins=[LightningEnvironment()],  # one process, also inside a job of Slurm
            barebones=True,
        )
        try:
            trainer.fit(task, data)
        except _Measured as found:
            reading: Reading = found.args[0]
            return reading
    raise UserError("not measured: the training data have no batch")


def _built(name: str, cfg: DictConfig) -> Any:
    """What `build_task` or `build_data` of the project's training script makes."""
    module = project.current().module
    build = getattr(importlib.import_module(module), name, None)
    if build is None:
        raise UserError(f"not measured: {module} has no function {name}(cfg)")
    return build(cfg)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a task that can be compiled: its children, except metrics, which keep sums in Python."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _parts(child)
        elif not isinstance(child, Metric):
            yield child


def batch_of(cfg: DictConfig) -> str:
    """For the name of a row: `, batch 64`; empty where the settings do not say how large a batch is."""
    size = OmegaConf.select(cfg, "data.batch_size")
    return f", batch {size}" if size else ""


def loading(cfg: DictConfig, budget_s: float) -> Reading:
    """The training data as the run's own loader gives them, without a task; in examples a second.

    Raises:
        UserError: they are not prepared.
    """

    def measure(loaders: Any) -> Reading:
        if isinstance(loaders, Mapping | Sequence):  # several loaders: each step gets a batch of every one
            loaders = CombinedLoader(loaders, "max_size_cycle")
        batches = itertools.chain.from_iterable(itertools.repeat(loaders))
        num_examples = extract_batch_size(next(batches))
        return seconds(partial(next, batches), torch.device("cpu"), budget_s).rate(num_examples)

    at_start = LambdaCallback(on_train_start=lambda trainer, _: _end(measure(trainer.train_dataloader)))
    return _in_a_training(_NoTask(), _built("build_data", cfg), cfg, torch.device("cpu"), at_start)
