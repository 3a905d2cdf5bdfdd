"""Weights of a checkpoint, and what a trained run consists of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..settings.console import listed
from ..settings.errors import UserError
from .run import Run, find, load_config

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from omegaconf import DictConfig


class Trained(NamedTuple):
    """A run's settings, its task with the best weights, in evaluation mode and on the CPU, and its data."""

    cfg: DictConfig
    task: Any  # of the owner's class of LightningModule
    data: Any  # of the owner's class of LightningDataModule


def load(run: Run | Path | str) -> Trained:
    """What the run has trained, built by `build_task(cfg)` and `build_data(cfg)` of its training script.

    Args:
        run: or its folder, also as it is named from the project's root on.

    Raises:
        UserError: the run is damaged, or its script or model is another by now.
    """
    run = run if isinstance(run, Run) else find(str(run))
    cfg, script = load_config(run, complete=True), run.script()
    absent = [name for name in ("build_task", "build_data") if not hasattr(script, name)]
    if absent:
        raise UserError(
            f"{run.module()} has no function {absent[0]}(cfg), by which {run.folder} could be loaded. Add it there."
        )
    task: pl.LightningModule = script.build_task(cfg)
    load_weights(task, run.best)
    data: pl.LightningDataModule = script.build_data(cfg)
    return Trained(cfg, task.eval(), data)


def load_weights(task: pl.LightningModule, checkpoint: Path) -> None:
    """Load a checkpoint's weights into the task.

    Raises:
        UserError: the file is damaged, or of another model; then it names the layers.
    """
    weights: dict[str, Any] = read_checkpoint(checkpoint)["state_dict"]
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
    different = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if different:
        named = [
            f"{name} ({shapes.get(name, 'absent')}, the model has {wanted.get(name, 'nothing')})" for name in different
        ]
        raise UserError(
            f"{checkpoint} is of another model: {len(different)} layers differ: {listed(named)}. "
            "Use the configuration and code it was trained with, or start a new run."
        )
    task.load_state_dict(weights)


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain types.

    Raises:
        UserError: the file is damaged.
    """
    import torch

    try:
        content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if "state_dict" not in content:
            raise KeyError("state_dict")
    except OSError:
        raise
    except Exception as error:  # what torch raises for a damaged file depends on where it is damaged
        raise UserError(
            f"{checkpoint} is damaged: it cannot be read as a checkpoint. Delete it, then train again."
        ) from error
    return content
