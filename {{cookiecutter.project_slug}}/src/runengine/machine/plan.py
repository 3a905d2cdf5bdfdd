"""What is measured on which device, in which sizes and types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig

from .kernels import attention, convolution, copy, launch, product, transfer
from .own_step import batch_of, own_step
from .products import dtypes
from .steps import block_step, resnet_step
from .timing import Reading
from .verdicts import Row


@dataclass(frozen=True)
class Sizes:
    """What is computed. On a GPU large enough to fill it, on a CPU small enough for seconds."""

    product: int
    copy_bytes: int
    convolution: tuple[int, int, int]  # N, C, H = W
    attention: tuple[int, int, int, int]  # B, heads, L, D
    block: tuple[int, int, int]  # B, L, E
    resnet: tuple[int, int]  # N, H = W


SIZES = {
    # the copy: eight times the largest cache in gpu_specs.py, 126 MB of a B200
    "cuda": Sizes(8192, 1 << 30, (64, 256, 56), (8, 16, 2048, 64), (8, 1024, 1024), (64, 224)),
    "mps": Sizes(4096, 1 << 29, (16, 256, 56), (4, 16, 1024, 64), (4, 512, 512), (16, 224)),
    "cpu": Sizes(2048, 1 << 28, (4, 128, 56), (1, 8, 1024, 64), (2, 256, 512), (4, 64)),
}


class Measurement(NamedTuple):
    """A row that is still to be measured."""

    row: Row
    measure: Callable[[], Reading]


def devices() -> list[torch.device]:
    """Each GPU, else the GPU of a Mac, else the CPU."""
    if torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]


def plan(device: torch.device, cfg: DictConfig, budget_s: float) -> list[Measurement]:
    """The rows of one device."""
    rows: list[Measurement] = []

    def add(kind: str, what: str, unit: str, measure: Callable[..., Reading], dtypes: Sequence[str] = ()) -> None:
        for dtype in dtypes or ["-"]:
            row = Row(str(device), kind, what, dtype, unit)
            rows.append(Measurement(row, partial(measure, *([dtype] if dtypes else []), device, budget_s)))

    size = SIZES[device.type]
    copy_bytes = max(size.copy_bytes, 4 * last_level_cache_bytes()) if device.type == "cpu" else size.copy_bytes
    all_dtypes = dtypes(device, fast=True)
    wide = [dtype for dtype in all_dtypes if dtype != "fp8"]
    training = [dtype for dtype in wide if dtype != "fp16" or "bf16" not in wide]
    add("product", f"matrix product {size.product}^3", "tflop_s", partial(product, size.product), all_dtypes)
    add("copy", f"copy in memory, {copy_bytes >> 20} MiB", "gb_s", partial(copy, copy_bytes))
    add("launch", "call of a small operation", "us", launch)
    if device.type == "cuda":
        for pinned, name in ((False, "pageable"), (True, "pinned")):
            for to_device, way in ((True, "host to device"), (False, "device to host")):
                add(name, f"{way}, {name}", "gb_s", partial(transfer, size.copy_bytes // 4, pinned, to_device))
    n, c, h = size.convolution
    add("convolution", f"convolution 3x3, {n}x{c}x{h}x{h}", "tflop_s", partial(convolution, size.convolution), wide)
    shape = "x".join(map(str, size.attention))
    add("attention", f"attention {shape}", "tflop_s", partial(attention, size.attention), wide)
    n, h = size.resnet
    shape = "x".join(map(str, size.block))
    for kind, what, unit, step in (
        ("own", f"this project's step{batch_of(cfg)}", "examples_s", partial(own_step, cfg)),
        ("resnet", f"ResNet-50 step, {n}x3x{h}x{h}", "examples_s", partial(resnet_step, size.resnet)),
        ("block", f"transformer block, {shape}", "sequences_s", partial(block_step, size.block)),
    ):
        add(kind, what, unit, step, training)
        if device.type == "cuda":  # in one dtype only: compiling takes long
            add(kind, f"{what}, compiled", unit, partial(step, compiled=True), training[-1:])
    return rows


def last_level_cache_bytes() -> int:
    """Of all sockets together, as Linux reports it; 0 on other systems."""
    caches = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        try:
            size, shared = (index / name for name in ("size", "shared_cpu_list"))
            caches[shared.read_text(encoding="ascii")] = int(size.read_text(encoding="ascii").strip().rstrip("K")) << 10
        except (OSError, ValueError):
            continue
    return sum(caches.values())
