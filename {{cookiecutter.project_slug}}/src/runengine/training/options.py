"""What Lightning's Trainer is called with."""

from __future__ import annotations

import collections
import difflib
import inspect
import os
import sys
from collections.abc import Iterator
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, SimpleProfiler
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden

from ..runs.run import Run
from ..settings import process
from ..settings.errors import UserError
from . import device, distributed
from .checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from .device import Choice
from .history import History
from .hooks import NoEmptyHooks
from .progress_bar import EpochBar
from .rank_state import RankState
from .signals import Signals

PROFILERS: dict[str, type[Profiler]] = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}


def trainer_options(
    run: Run, cfg: DictConfig, task: pl.LightningModule, history: History, signals: Signals, others: list[pl.Callback]
) -> tuple[dict[str, Any], list[Choice]]:
    """The arguments of `pl.Trainer`, and every choice that was made with its reason.

    Raises:
        UserError: this machine has not so many devices of this kind, or the trainer has no such setting.
    """
    options: dict[str, Any] = hydra.utils.instantiate(cfg.trainer, _convert_="all")
    options.pop("_target_", None)  # runs of earlier projects name the class
    _check_names(options)
    _check_devices(options["accelerator"], options["devices"])
    precision, fuses, choices = _take_of_device(options, task)
    _share_out(task, options["strategy"])
    profiler = PROFILERS.get(str(options["profiler"]))
    return {
        **options,
        "precision": precision,
        "profiler": profiler(dirpath=run.folder, filename="profile") if profiler else options["profiler"],
        "callbacks": [
            *callbacks(run, history, signals, patience=cfg.patience, others=others, **cfg.checkpoint),
            *([device.Fused()] if fuses else []),
        ],
        "plugins": [AtomicCheckpointIO(), distributed.environment()],
        "enable_progress_bar": sys.stderr.isatty() and process.rank() == 0,
        "enable_model_summary": False,
    }, choices


def callbacks(
    run: Run,
    history: History,
    signals: Signals,
    *,
    patience: int | None = None,
    every_n_steps: int | None = None,
    every_minutes: float | None = None,
    others: list[pl.Callback] | None = None,
) -> list[pl.Callback]:
    """In this order: `last` is written last, so it knows what is best, and whether training has ended early.

    At the end of an epoch Lightning calls checkpoints behind the task and the other callbacks; the row is added there,
    by the first of them. A metric that nobody logs is refused with it, not by `EarlyStopping`, which is called before.
    """
    metric, mode = history.metric, history.mode
    return [
        history,
        RankState(),
        NoEmptyHooks(),
        *([EarlyStopping(metric, patience=patience, mode=mode, strict=False)] if patience and metric else []),
        *([EpochBar()] if sys.stderr.isatty() and process.rank() == 0 else []),
        BestCheckpoint(
            history,
            dirpath=run.checkpoints,
            filename="best",
            monitor=metric,
            mode=mode,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        *(others or []),
        LastCheckpoint(run.last, signals, metric, every_n_steps, every_minutes),
    ]


def evaluation_trainer() -> pl.Trainer:
    """A trainer that tests or predicts on one device, says nothing, and leaves nothing."""
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    from ..settings.console import quiet_lightning

    quiet_lightning()
    alone = LightningEnvironment()  # also inside a job of Slurm
    return pl.Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        plugins=[alone],
    )


def _share_out(task: pl.LightningModule, strategy: Any) -> None:
    """trainer=fsdp for a task that does not say how: each of its modules is shared out as a whole.

    They have to be called by `forward`: the parts of a layer are gathered for that.
    """
    if not isinstance(strategy, ModelParallelStrategy) or is_overridden("configure_model", task):
        return
    modules = list(_outermost(task))
    owned = collections.Counter(id(parameter) for module in modules for parameter in set(module.parameters()))
    if len(owned) < len(set(task.parameters())):
        problem = "has parameters outside of its modules"
    elif any(count > 1 for count in owned.values()):
        problem = "has modules with the same parameters, as where weights are tied"
    else:
        problem = ""
    if problem:
        raise UserError(
            f"this task {problem}: trainer=fsdp cannot share them out by itself. Put them into one module, or write "
            "configure_model as in Lightning's documentation on ModelParallelStrategy."
        )

    def configure_model() -> None:  # Lightning calls it before each stage
        from torch.distributed.fsdp import FSDPModule, fully_shard

        assert task.device_mesh is not None
        for module in modules:
            if not isinstance(module, FSDPModule):
                fully_shard(module, mesh=task.device_mesh["data_parallel"])

    task.configure_model = configure_model  # type: ignore[method-assign]


def _outermost(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules in it that have parameters and can be called: a list of modules cannot."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict):
            yield from _outermost(child)
        elif any(True for _ in child.parameters()):
            yield child


def _check_names(options: dict[str, Any]) -> None:
    if options.get("fast_dev_run"):
        raise UserError("trainer.fast_dev_run leaves no checkpoint, so its run could not be used. Try debug=fdr.")
    known = inspect.signature(pl.Trainer).parameters
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean trainer.{nearest[0]}?" if nearest else "See the arguments of Lightning's Trainer."
            raise UserError(f"trainer.{name} is not a setting of Lightning's Trainer. {hint}")


def _check_devices(accelerator: str, wanted: int) -> None:
    kind = device.kind_of(accelerator)
    here = {
        "gpu": 0,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": os.cpu_count() or 1,
    }
    if kind in here and wanted > here[kind]:
        name = {"cpu": "CPU cores", "mps": "GPUs of a Mac"}.get(kind, "GPUs that PyTorch can use")
        other = f"trainer.devices={here[kind]}" if here[kind] else "trainer=cpu"
        why = " `make doctor` says why." if kind in ("gpu", "cuda") else ""
        raise UserError(f"trainer.devices is {wanted}, but {name} here: {here[kind]}. Try {other}.{why}")


def _take_of_device(options: dict[str, Any], task: pl.LightningModule) -> tuple[str, bool, list[Choice]]:
    """Let the task use what the device has; the precision, whether optimizers are fused, and the GPU's choices."""
    kind = device.kind_of(options["accelerator"])
    name, capability = device.capability_of(kind)
    precision, choices = options["precision"], []
    by_itself = precision == "auto"
    if by_itself:
        choices.append(device.precision(name, capability))
        precision = choices[0].value
    tensor_float = device.tensor_float(capability) if by_itself else None
    torch.set_float32_matmul_precision("high" if tensor_float else "highest")
    layout = device.layout(task, capability)
    if layout:
        task.to(memory_format=torch.channels_last)
    fused = device.fused(kind, capability, precision, options["gradient_clip_val"] is not None)
    choices += [choice for choice in (tensor_float, layout, fused if capability else None) if choice]
    return precision, bool(fused), choices
