"""Weights of a checkpoint, and what a trained run consists of."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..compat import import_lightning
from ..settings.console import listed
from ..settings.errors import UserError
from .find import find_checkpoint
from .run import Run, load_config

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from omegaconf import DictConfig


class Trained(NamedTuple):
    """A run's settings, its task with the best weights, in evaluation mode and on the CPU, and its data."""

    cfg: DictConfig
    task: Any  # of the owner's class of LightningModule
    data: Any  # of the owner's class of LightningDataModule


def load(run: Run | Path | str | None) -> Trained:
    """What the run has trained, built by `build_task(cfg)` and `build_data(cfg)` of its training script.

    Args:
        run: or what `find` takes, such as its folder; or a checkpoint in its folder, whose weights are taken then.

    Raises:
        UserError: the run is damaged, or its script or model is another by now.
    """
    run, checkpoint = find_checkpoint(run)
    import_lightning()
    cfg, script = load_config(run, complete=True), run.script()
    absent = [name for name in ("build_task", "build_data") if not hasattr(script, name)]
    if absent:
        raise UserError(
            f"{run.module()} has no function {absent[0]}(cfg), by which {run.folder} could be loaded. Add it there."
        )
    task: pl.LightningModule = script.build_task(cfg)
    load_weights(task, checkpoint)
    data: pl.LightningDataModule = script.build_data(cfg)
    return Trained(cfg, task.eval(), data)


def load_weights(task: pl.LightningModule, checkpoint: Path) -> dict[str, Any]:
    """Load a checkpoint's weights into the task; returns the content of the checkpoint.

    Raises:
        UserError: the file is damaged, or of another model; then it names the layers.
    """
    content = read_checkpoint(checkpoint)
    weights: dict[str, Any] = content["state_dict"]
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
    return content


def checkpoint_named(name: str) -> Path:
    """A checkpoint's file, or the best one of a run's folder."""
    file = Path(name)
    file = Run(file).best if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"init_from={name} is not a checkpoint. Give a file such as runs/.../checkpoints/best.ckpt.")
    return file


def refuse_without_best(run: Run, content: Mapping[str, Any]) -> None:
    """A run that is resumed and finds no better epoch would end without its best weights.

    Args:
        run: is to be resumed.
        content: of the checkpoint it resumes from.

    Raises:
        UserError: the best checkpoint that this one speaks of is absent or damaged.
    """
    known = [state for name, state in content.get("callbacks", {}).items() if name.startswith("BestCheckpoint")]
    if not any(state["best_model_path"] for state in known):
        return
    problem = "is not there" if not run.best.exists() else "is damaged" if is_damaged(run.best) else ""
    if problem:
        raise UserError(
            f"{run.best} {problem}, so the weights of the best epoch are lost. Bring back a copy of it, or start a new "
            f"run from the last weights of this one: init_from={run.last}"
        )


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain types.

    Raises:
        UserError: the file is damaged.
    """
    import torch

    refuse_damaged(checkpoint)
    try:
        content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if "state_dict" not in content:
            raise KeyError("state_dict")
    except OSError:
        raise
    except Exception as error:  # what torch raises depends on what the file is
        raise _damaged(checkpoint) from error
    return content


def refuse_damaged(checkpoint: Path) -> None:
    """Refuse a checkpoint in which a bit is not what was written.

    Raises:
        UserError: the file is damaged.
    """
    if is_damaged(checkpoint):
        raise _damaged(checkpoint)


def is_damaged(checkpoint: Path) -> bool:
    """Compare the file with the checksums in it, which `torch.load` ignores: one wrong bit is a wrong weight."""
    try:
        with zipfile.ZipFile(checkpoint) as parts:
            return parts.testzip() is not None
    except OSError:
        raise
    except Exception:  # what is raised depends on where it is damaged
        return True


def _damaged(checkpoint: Path) -> UserError:
    best = checkpoint.with_name(Path(Run.best.name).name)
    if checkpoint.name == Path(Run.last.name).name and best.is_file():
        remedy = f"Bring back a copy of it, or start a new run from the best weights of this one: init_from={best}"
    else:
        remedy = "Bring back a copy of it, or train again"
    return UserError(f"{checkpoint} is damaged: it cannot be read as a checkpoint. {remedy}.")
