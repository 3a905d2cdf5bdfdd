"""What is measured on which device, in which sizes and types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig

from .kernels import attention, convolution, copy, launch, product, transfer
from .own_step import batch_of, own_step
from .steps import block_step, resnet_step
from .timing import Reading

BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # of x86 and Arm CPUs, as PyTorch names them


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


@dataclass(frozen=True)
class Measurement:
    """A row that is still to be measured.

    Args:
        kind: by which limit and standard are chosen.
        what: with sizes; two rows of one name and dtype can be compared.
    """

    device: str
    kind: str
    what: str
    dtype: str
    unit: str
    measure: Callable[[], Reading]


def devices() -> list[torch.device]:
    """Each GPU, else the GPU of a Mac, else the CPU."""
    if torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]


def dtypes(device: torch.device) -> list[str]:
    """The types for which this device has units of its own."""
    if device.type == "mps":
        return ["fp32", "fp16"]
    if device.type == "cpu":
        # not fp16: without units for it, a product took 230 times as long as in fp32 (2048^3, AMD EPYC, torch 2.13)
        has = torch.cpu.get_capabilities()
        return ["fp32", "bf16"] if any(has.get(units) for units in BF16_UNITS) else ["fp32"]
    if torch.version.hip:
        return ["fp32", "bf16", "fp16"]
    capability = torch.cuda.get_device_capability(device)
    since = {"fp32": (0, 0), "tf32": (8, 0), "bf16": (8, 0), "fp16": (7, 0), "fp8": (8, 9)}
    return [dtype for dtype, least in since.items() if capability >= least]


def plan(device: torch.device, cfg: DictConfig, budget_s: float) -> list[Measurement]:
    """The rows of one device."""
    size = SIZES[device.type]
    copy_bytes = max(size.copy_bytes, 4 * last_level_cache_bytes()) if device.type == "cpu" else size.copy_bytes
    all_dtypes = dtypes(device)
    wide = [dtype for dtype in all_dtypes if dtype != "fp8"]
    training = [dtype for dtype in wide if dtype != "fp16" or "bf16" not in wide]
    n, c, h = size.convolution
    b, heads, length, d = size.attention
    rows: list[tuple[str, str, str, str, Callable[..., Reading]]] = [
        *(
            ("product", f"matrix product {size.product}^3", dtype, "tflop_s", partial(product, size.product, dtype))
            for dtype in all_dtypes
        ),
        ("copy", f"copy in memory, {copy_bytes >> 20} MiB", "-", "gb_s", partial(copy, copy_bytes)),
        ("launch", "call of a small operation", "-", "us", launch),
    ]
    if device.type == "cuda":
        for pinned, name in ((False, "pageable"), (True, "pinned")):
            for to_device, way in ((True, "host to device"), (False, "device to host")):
                transfer_of = partial(transfer, size.copy_bytes // 4, pinned, to_device)
                rows.append((name, f"{way}, {name}", "-", "gb_s", transfer_of))
    for dtype in wide:
        rows.append(("convolution", f"convolution 3x3, {n}x{c}x{h}x{h}", dtype, "tflop_s",
                     partial(convolution, size.convolution, dtype)))  # fmt: skip
    for dtype in wide:
        rows.append(("attention", f"attention {b}x{heads}x{length}x{d}", dtype, "tflop_s",
                     partial(attention, size.attention, dtype)))  # fmt: skip
    steps = [
        ("own", f"this project's step{batch_of(cfg)}", partial(own_step, cfg)),
        ("resnet", f"ResNet-50 step, {size.resnet[0]}x3x{size.resnet[1]}x{size.resnet[1]}",
         partial(resnet_step, size.resnet)),
        ("block", f"transformer block, {'x'.join(map(str, size.block))}", partial(block_step, size.block)),
    ]  # fmt: skip
    for kind, what, step in steps:
        for dtype in training:
            rows.append((kind, what, dtype, "examples_s" if kind != "block" else "sequences_s", partial(step, dtype)))
        if device.type == "cuda":  # in one dtype only: compiling takes long
            dtype = training[-1]
            unit = "examples_s" if kind != "block" else "sequences_s"
            rows.append((kind, f"{what}, compiled", dtype, unit, partial(step, dtype, compiled=True)))
    name = str(device)
    return [
        Measurement(name, kind, what, dtype, unit, partial(measure, device, budget_s))
        for kind, what, dtype, unit, measure in rows
    ]


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
