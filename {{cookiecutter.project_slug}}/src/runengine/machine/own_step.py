"""This project's own training step and data loader, whatever its task is."""

from __future__ import annotations

import importlib
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

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

Measured = TypeVar("Measured")


class FirstStep(NamedTuple):
    """What a training step needs, on its device.

    Args:
        loss_of: the forward pass.
    """

    task: pl.LightningModule
    optimizer: torch.optim.Optimizer
    batch: Any
    loss_of: Callable[[], Tensor]


def own_step(cfg: DictConfig, dtype: str, device: torch.device, budget_s: float, compiled: bool = False) -> Reading:
    """Examples a second of a training step of this project, on one batch of its data; loading is not measured."""

    def measure(first: FirstStep) -> Reading:
        parts = list(_parts(first.task)) if compiled else []
        num_examples = extract_batch_size(first.batch)
        return training(first.loss_of, first.optimizer, num_examples, dtype, device, budget_s, parts)

    return at_first_batch(cfg, device, measure)


def at_first_batch(cfg: DictConfig, device: torch.device, measure: Callable[[FirstStep], Measured]) -> Measured:
    """Measure something of the project's task, its first optimizer, and its first batch.

    Raises:
        UserError: the data are not prepared, or the task does not leave its step to Lightning.
    """
    data = _built("build_data", cfg)
    data.setup("fit")  # settings of the model may be read from what was prepared
    task = _built("build_task", cfg)
    if not task.automatic_optimization:
        raise UserError("not measured: the task steps its optimizers itself (automatic_optimization is False)")

    def with_batch(trainer: pl.Trainer, batch: Any) -> Measured:
        parameters = inspect.signature(task.training_step).parameters.values()
        takes_index = len(parameters) > 1 or any(each.kind == each.VAR_POSITIONAL for each in parameters)

        def loss_of() -> Tensor:
            result: Any = task.training_step(batch, 0) if takes_index else task.training_step(batch)
            loss = result.get("loss") if isinstance(result, Mapping) else result
            if not isinstance(loss, Tensor):
                raise UserError("not measured: training_step gives no loss for the first batch")
            return loss

        return measure(FirstStep(task, trainer.optimizers[0], batch, loss_of))

    # there the batch is on the device, and the optimizers are built
    callback = LambdaCallback(on_train_batch_start=lambda trainer, _, batch, __: _end(with_batch(trainer, batch)))
    found: Measured = _in_a_training(task, data, cfg, device, callback)
    return found


class _Ended(Exception):
    """Ends a training once something was measured; its argument is that."""


def _end(found: Any) -> None:
    raise _Ended(found)


class _NoTask(pl.LightningModule):
    """Takes the place of the task where only the data are measured: the loaders are built, and no step is taken."""

    def training_step(self, batch: Any) -> None:
        """Never called."""

    def configure_optimizers(self) -> None:
        """There is nothing to learn."""


def _in_a_training(
    task: pl.LightningModule, data: pl.LightningDataModule, cfg: DictConfig, device: torch.device, callback: pl.Callback
) -> Any:
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
        except _Ended as end:
            return end.args[0]
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
    reading: Reading = _in_a_training(_NoTask(), _built("build_data", cfg), cfg, torch.device("cpu"), at_start)
    return reading
