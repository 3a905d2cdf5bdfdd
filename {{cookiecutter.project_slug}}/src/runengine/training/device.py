"""What the GPU can do, and what a training takes of it: each choice with its reason.

`trainer.precision=auto` (trainer=gpu) chooses here; a precision that is typed is not changed.
"""

from __future__ import annotations

from typing import NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

Version = tuple[int, int]
AMPERE, VOLTA = (8, 0), (7, 0)  # compute capability: developer.nvidia.com/cuda-gpus


class Choice(NamedTuple):
    """What is used, and why."""

    value: str
    reason: str


def kind_of(accelerator: str) -> str:
    """`auto` becomes cuda, mps or cpu, and `gpu` what is here of it."""
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu" if accelerator == "auto" else "gpu"
    return accelerator


def capability_of(kind: str) -> tuple[str, Version | None]:
    """The device's name, and its compute capability; where GPUs differ, of the least able."""
    if kind != "cuda" or not torch.cuda.is_available():
        return kind, None
    capability, index = min((torch.cuda.get_device_capability(i), i) for i in range(torch.cuda.device_count()))
    return torch.cuda.get_device_name(index), capability


def precision(name: str, capability: Version | None) -> Choice:
    """Of the arithmetic, as Lightning's Trainer calls it.

    Args:
        name: of the device.
        capability: the GPU's compute capability; None for what is no GPU of NVIDIA's or AMD's.
    """
    if capability is None:
        return Choice("32-true", f"{name} is no GPU of CUDA or ROCm")
    if capability >= AMPERE:
        return Choice("bf16-mixed", f"{name} multiplies bfloat16 in hardware, and its range is that of float32")
    if capability >= VOLTA:
        return Choice("16-mixed", f"{name} multiplies float16 in hardware, but no bfloat16; the loss is scaled")
    return Choice("32-true", f"{name} has no tensor cores: less would not be faster")


def tensor_float(capability: Version | None) -> Choice | None:
    """How float32 is multiplied where it is left, under a precision chosen by itself."""
    if capability is None or capability < AMPERE:
        return None
    return Choice("TF32", "float32 is multiplied with 10 bits of mantissa, which mixed precision does anyway")


def layout(model: nn.Module, capability: Version | None) -> Choice | None:
    """How what is convolved lies in memory."""
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if capability is None or capability < VOLTA or not convolves:
        return None
    return Choice("channels_last", "the tensor cores convolve in this order, others are turned first")


def fused(kind: str, capability: Version | None, chosen: str, clips: bool) -> Choice | None:
    """Whether the optimizer's step is one kernel.

    Args:
        kind: of the device.
        capability: the GPU's compute capability; None for what is no GPU of NVIDIA's or AMD's.
        chosen: the precision.
        clips: gradients are clipped.
    """
    if chosen == "16-mixed" and clips:  # it would unscale gradients that are clipped before
        return None
    if capability is None and kind != "cpu":
        return None
    return Choice("fused optimizer", "all parameters are stepped by one kernel instead of some for each")


class Fused(Callback):
    """Lets every optimizer that can step with one kernel, unless the owner has said how it shall step."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if any(getattr(module, "sparse", False) for module in pl_module.modules()):
            return  # an embedding whose gradients are sparse: no such kernel takes them
        for optimizer in trainer.optimizers:
            fuse(optimizer)


def fuse(optimizer: torch.optim.Optimizer) -> bool:
    """Switch the optimizer to one kernel before its first step; returns whether it can."""
    groups = optimizer.param_groups
    if any(group.get("fused", False) is not None or group.get("foreach") is not None for group in groups):
        return False
    if any(group.get("differentiable") for group in groups):
        return False
    if not all(parameter.is_floating_point() for group in groups for parameter in group["params"]):
        return False
    for group in groups:
        group["fused"] = True
    return True
